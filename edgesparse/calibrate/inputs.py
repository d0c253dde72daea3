"""How a module's input becomes the matrix X whose product with the weight is the output."""

from __future__ import annotations

from torch import Tensor, nn


def has_inputs(module: nn.Module) -> bool:
    """Whether the module multiplies its input by its weight in a way ``input_rows`` knows."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def input_rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return X: one row of K values for every output position, [samples, K]."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return _patches(module, inputs)
    return inputs.reshape(-1, inputs.shape[-1])


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as the float32 matrix [N, K] the solvers work on; shares memory if it can."""
    return weight.detach().float().reshape(weight.shape[0], -1)


def _patches(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Return what each position of a convolution sees, [batch * positions, channels * kernel]."""
    spatial = len(module.kernel_size)
    if inputs.dim() == spatial + 1:
        inputs = inputs[None]
    margins = _margins(module)
    if any(margins):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = nn.functional.pad(inputs, margins, mode=mode)
    kernel, stride, dilation = (
        (1, *value) if spatial == 1 else value
        for value in (module.kernel_size, module.stride, module.dilation)
    )
    if spatial == 1:
        inputs = inputs.unsqueeze(2)
    patches = nn.functional.unfold(inputs, kernel, dilation=dilation, stride=stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _margins(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Return the padding as ``nn.functional.pad`` takes it: last dimension first, both ends."""
    if module.padding == "valid":
        return []
    margins: list[int] = []
    for i in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[i] * (module.kernel_size[i] - 1)
            margins += [total // 2, total - total // 2]
        else:
            assert not isinstance(module.padding, str)
            margins += [module.padding[i]] * 2
    return margins
