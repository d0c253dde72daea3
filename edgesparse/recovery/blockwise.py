"""Recovery one block at a time: each learns to give the dense block's output from what reaches it.

For models too large to train whole: in memory are one block, its dense twin, its optimizer and the
hidden tensors of the calibration inputs between blocks. The loss is the relative squared error of
the block's output on the compressed model's hidden tensors against the dense model's own, so that a
block also makes up for the blocks before it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgesparse.calibrate.hidden import Hidden, first_hidden
from edgesparse.calibrate.inputs import has_inputs
from edgesparse.calibrate.record import Chain, disable_cache, find_chain, record
from edgesparse.calibrate.residence import Residence
from edgesparse.calibrate.windows import Batch, calibration_batches
from edgesparse.errors import CalibrationError
from edgesparse.model import CompressedModel
from edgesparse.packed import PackedTensor
from edgesparse.recovery.latent import LatentWeight

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BlockProgress:
    """One block done.

    Attributes:
        block: Its module path.
        done: Blocks done, this one included.
        total: Blocks of the chain.
        before: Relative squared error of its output before training, on all inputs.
        after: And after.
    """

    block: str
    done: int
    total: int
    before: float
    after: float


def recover_blockwise(
    compressed: CompressedModel,
    *,
    data: object,
    steps: int = 200,
    lr: float = 1e-3,
    batch: int = 8,
    windows: int | None = 64,
    window: int = 512,
    device: str = "cpu",
    seed: int = 0,
    progress: Callable[[BlockProgress], None] | None = None,
) -> CompressedModel:
    """Return the model with better values in every block, masks and formats unchanged.

    Args:
        compressed: The model; not changed.
        data: See ``calibrate.calibration_batches``.
        steps: Optimizer steps for each block.
        lr: Highest learning rate; falls linearly to zero.
        batch: Windows or examples in a step.
        windows: Windows of tokens used in all.
        window: Tokens in a window.
        device: ``cpu`` or ``cuda``.
        seed: Which windows, and in which order.
        progress: Called after every block.

    Raises:
        CalibrationError: The model is no chain of blocks, or the data cannot be used.
    """
    from edgesparse.runtime.modules import build_decoded

    target = torch.device(device)
    captured = compressed.captured
    batches = calibration_batches(
        captured, data, windows=windows, window=window, seed=seed, batch_size=batch
    )
    dense, model = captured.loader().float().eval(), build_decoded(compressed)
    disable_cache(dense)
    disable_cache(model)
    chain = _chain(dense, batches)
    with torch.no_grad():
        ours = first_hidden(model, batches, chain, target, residence=Residence())
        ours.dense = first_hidden(dense, batches, chain, target, residence=Residence()).now
    packed = dict(compressed.packed)
    for index, name in enumerate(chain.blocks):
        block, twin = model.get_submodule(name), dense.get_submodule(name)
        trained, errors = _train(
            _Block(name, block.to(target), packed), twin.to(target), ours, steps, lr, seed
        )
        packed |= trained
        block.to("cpu")
        twin.to("cpu")
        if progress is not None:
            progress(
                BlockProgress(
                    block=name,
                    done=index + 1,
                    total=len(chain.blocks),
                    before=errors[0],
                    after=errors[1],
                )
            )
    metadata = {**compressed.metadata, "recovery": {"steps": steps, "blockwise": True, "lr": lr}}
    return dataclasses.replace(compressed, packed=packed, errors={}, metadata=metadata)


class _Block(nn.Module):
    """One block whose packed tensors are latent."""

    def __init__(self, name: str, block: nn.Module, packed: dict[str, PackedTensor]) -> None:
        super().__init__()
        device = next(block.parameters()).device
        self._name, self._block = name, [block.requires_grad_(False)]
        self.own = [tensor for tensor in packed if tensor.startswith(f"{name}.")]
        self.before = [packed[tensor] for tensor in self.own]
        self.latent = nn.ModuleList(LatentWeight(p) for p in self.before).to(device)

    def forward(self, hidden: Hidden, batch: int) -> Tensor:
        """Return the hidden output for one batch."""
        args, kwargs = hidden.arguments(self._name, batch, dense=False)
        weights = {
            tensor[len(self._name) + 1 :]: latent()
            for tensor, latent in zip(self.own, self.latent, strict=True)
        }
        output = torch.func.functional_call(self._block[0], weights, args, kwargs)
        return _hidden(output)

    def pack(self) -> dict[str, PackedTensor]:
        """Return the trained tensors."""
        result = {}
        for tensor, before, latent in zip(self.own, self.before, self.latent, strict=True):
            assert isinstance(latent, LatentWeight)
            result[tensor] = latent.pack(before.spec.pattern)
        return result


def _train(
    block: _Block, twin: nn.Module, hidden: Hidden, steps: int, lr: float, seed: int
) -> tuple[dict[str, PackedTensor], tuple[float, float]]:
    """Train one block and move the hidden tensors behind it; return its tensors and its errors."""
    assert hidden.dense is not None
    with torch.no_grad():
        wanted = []
        for i in range(len(hidden)):
            args, kwargs = hidden.arguments(block._name, i, dense=True)
            wanted.append(_hidden(twin(*args, **kwargs)))
        before = _error(block, hidden, wanted)
    if block.own:
        _optimize(block, hidden, wanted, steps, lr, seed)
    with torch.no_grad():
        after = _error(block, hidden, wanted)
        for i, value in enumerate(wanted):
            hidden.now[i] = block(hidden, i)
            hidden.dense[i] = value
    return block.pack(), (before, after)


def _optimize(
    block: _Block, hidden: Hidden, wanted: Sequence[Tensor], steps: int, lr: float, seed: int
) -> None:
    """Take ``steps`` steps of Adam, one batch each, in a seeded order."""
    latents = [latent for latent in block.latent if isinstance(latent, LatentWeight)]
    scales = [latent.log_scales for latent in latents if latent.log_scales.requires_grad]
    values = [latent.values for latent in latents]
    groups = [{"params": values, "lr": lr}, {"params": scales, "lr": 10 * lr}]
    optimizer = torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.95))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    order = np.random.default_rng(seed)
    for _ in range(steps):
        i = int(order.integers(len(hidden)))
        optimizer.zero_grad()
        loss = _relative(block(hidden, i), wanted[i])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        falling.step()


def _error(block: _Block, hidden: Hidden, wanted: Sequence[Tensor]) -> float:
    """Return the mean relative squared error over all batches."""
    errors = [_relative(block(hidden, i), wanted[i]) for i in range(len(hidden))]
    return float(torch.stack(errors).mean())


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


def _hidden(output: object) -> Tensor:
    """Return the hidden tensor of what a block returned."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def _chain(model: nn.Module, batches: Sequence[Batch]) -> Chain:
    """Return the chain of blocks.

    Raises:
        CalibrationError: There is none.
    """
    modules = [name for name, module in model.named_modules() if has_inputs(module)]
    with torch.no_grad():
        recording = record(model, batches[0], modules, torch.device("cpu"))
    chain = find_chain(model, recording, modules)
    if chain is None:
        raise CalibrationError(
            "this model is no chain of blocks, so it cannot be recovered block by block; use "
            "recover, which trains it whole"
        )
    return chain
