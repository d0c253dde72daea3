"""Sparsity by the trace of the loss's Hessian: layers whose weights matter more lose less.

The sensitivity of a layer is the mean of the diagonal of the Hessian of the model's loss over its
weights, ``f`` (Dong et al. 2020, HAWQ-V2, arXiv 1911.03852). Removing weights costs ``½ f Σ w²``;
the least total cost is reached where one threshold on ``f w²`` separates what goes from what stays
in all layers. No layer moves further than ``spread`` from its plan.

The Hessian is taken in its Gauss-Newton form, whose trace needs one backward pass a batch: with
labels drawn from a language model's own predictions it is the mean of the squared gradients, for
any other model that of ``ε · y`` with random signs ``ε`` on its outputs ``y``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.calibrate.inputs import as_matrix
from edgesparse.calibrate.record import call_model, disable_cache
from edgesparse.calibrate.windows import Batch
from edgesparse.errors import CalibrationError, RecipeError
from edgesparse.model import CapturedModel
from edgesparse.pattern import Pattern
from edgesparse.planner.types import TensorPlan
from edgesparse.prune.masks import block_means
from edgesparse.runtime.forward import first_tensor

_LEVELS = torch.linspace(0, 1, 1001, dtype=torch.float64)
_SAMPLE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Options.

    Attributes:
        spread: How far a layer's sparsity may move from its plan.
        seed: Of the labels or signs drawn.
    """

    spread: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.spread < 1:
            raise RecipeError(f"hessian has spread {self.spread}, expected between 0 and 1")

    def sparsities(
        self,
        captured: CapturedModel,
        layers: Sequence[TensorPlan],
        batches: Sequence[Batch],
        device: torch.device,
    ) -> Mapping[str, float]:
        """Return the sparsity of each layer by name."""
        model = captured.loader().float().to(device)
        disable_cache(model)
        names = [entry.tensor.name for entry in layers]
        traces = traces_of(
            model, names, batches, labels=captured.task == "causal-lm", seed=self.seed
        )
        curves = {}
        for entry in layers:
            assert entry.rule is not None
            weight = as_matrix(model.get_parameter(entry.tensor.name).data)
            mean = traces[entry.tensor.name] / entry.tensor.numel
            curves[entry.tensor.name] = mean * squares(weight, entry.rule.pattern)
        return self.below_one_threshold(layers, curves)

    def below_one_threshold(
        self, layers: Sequence[TensorPlan], curves: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """Return the sparsities that one threshold makes, no further than ``spread`` from the plan.

        Args:
            layers: The layers.
            curves: Quantiles of ``f w²`` of each layer at ``_LEVELS``.
        """
        planned = {e.tensor.name: e.rule.pattern.sparsity for e in layers if e.rule is not None}
        total = sum(e.tensor.numel * planned[e.tensor.name] for e in layers)

        def at(threshold: float) -> dict[str, float]:
            found = {}
            for name, curve in curves.items():
                index = int(torch.searchsorted(curve, threshold))
                fraction = float(_LEVELS[min(index, len(_LEVELS) - 1)])
                low, high = planned[name] - self.spread, planned[name] + self.spread
                found[name] = min(high, max(low, fraction))
            return found

        logs = torch.cat(list(curves.values())).clamp(min=1e-30).log2()
        low, high = float(logs.min()) - 1, float(logs.max()) + 1
        for _ in range(50):
            middle = (low + high) / 2
            removed = at(2**middle)
            if sum(e.tensor.numel * removed[e.tensor.name] for e in layers) < total:
                low = middle
            else:
                high = middle
        return at(2**high)


def traces_of(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], *, labels: bool, seed: int
) -> dict[str, float]:
    """Return the trace of the Gauss-Newton matrix of each parameter, summed over all outputs.

    Args:
        model: In float32, on its device; gradients are left as they were.
        names: Of parameters.
        batches: Keyword arguments of forward passes.
        labels: Whether the output is next-token logits.
        seed: Of the labels or signs.

    Raises:
        CalibrationError: A gradient is not finite; the message names the tensor.
    """
    parameters = [model.get_parameter(name).requires_grad_(True) for name in names]
    device = parameters[0].device
    generator = torch.Generator(device).manual_seed(seed)
    traces = dict.fromkeys(names, 0.0)
    for batch in batches:
        with torch.enable_grad():
            output = first_tensor(call_model(model, batch, device)).float()
            value = _sampled_loss(output, generator) if labels else _signed(output, generator)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is None:
                continue
            power = float(gradient.double().square().sum())
            if not power < float("inf"):
                raise CalibrationError(
                    f"{name}: the gradient is not finite on the calibration data; check the data "
                    "and the source model"
                )
            traces[name] += power
    for parameter in parameters:
        parameter.requires_grad_(False)
    return traces


def squares(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return quantiles of ``w²``, of blocks its mean, at ``_LEVELS``; float64."""
    values = weight.square().flatten()
    if pattern.block != (1, 1):
        values = block_means(weight.square(), pattern.block)[0].flatten()
    values = values[:: -(-len(values) // _SAMPLE)].double().cpu()
    return torch.quantile(values, _LEVELS)


def _sampled_loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return the summed loss of labels drawn from the predictions themselves."""
    flat = logits.flatten(0, -2)
    with torch.no_grad():
        labels = torch.multinomial(flat.softmax(-1), 1, generator=generator)[:, 0]
    return functional.cross_entropy(flat, labels, reduction="sum")


def _signed(output: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sum of all outputs, each with a random sign."""
    signs = torch.randint(0, 2, output.shape, generator=generator, device=output.device)
    return (output * (2 * signs - 1)).sum()


TRACE = Trace()
