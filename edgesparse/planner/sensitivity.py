"""How much a model minds an error in each of its tensors: measured, or taken as alike.

Every tensor is damaged alone, once by rounding to three bits and once by removing half of its
weights, and the model is run on a few calibration inputs. The loss is the KL divergence of the
next-token distributions for language models, else the relative squared error of the outputs. Per
unit of the error a Gaussian weight would have suffered it becomes a rate, so that what is special
about a tensor, outliers included, is in the rate. Loss is taken to add up over tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from edgesparse.calibrate import calibration_batches
from edgesparse.errors import CalibrationError
from edgesparse.model import CapturedModel
from edgesparse.pattern import Pattern
from edgesparse.planner.error_model import gaussian_error
from edgesparse.planner.measured import Measured
from edgesparse.planner.rates import Rates
from edgesparse.runtime.forward import first_tensor

BITS, GROUP_SIZE, SPARSITY = 3, 128, 0.5
_CLIPS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ROUNDED = f"nearest {BITS}-bit g{GROUP_SIZE}"
REMOVED = f"{SPARSITY:.0%} of each row removed"
_LOSSES = tuple(f"KL or output error, {damage}" for damage in (ROUNDED, REMOVED))

Progress = Callable[[int, int], None]
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class _Probe:
    """The dense model, what it is run on, and what it then says."""

    module: nn.Module
    inputs: Sequence[Mapping[str, Any]]
    dense: Outputs
    is_language_model: bool

    def loss(self) -> float:
        """Return the loss of the module as it is now."""
        found = outputs(self.module, self.inputs)
        return distance(self.dense, found, language_model=self.is_language_model)

    def loss_with(self, name: str, damage: Callable[[Tensor], Tensor]) -> float:
        """Return the loss with one parameter damaged, seen as a matrix; it is repaired again."""
        parameter = dict(self.module.named_parameters(remove_duplicate=False))[name]
        whole = parameter.data
        parameter.data = damage(whole.reshape(len(whole), -1)).reshape(whole.shape)
        loss = self.loss()
        parameter.data = whole
        return loss


def measure_sensitivity(
    captured: CapturedModel,
    calibration: object,
    *,
    windows: int = 4,
    window: int = 512,
    device: str = "cpu",
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Rates]:
    """Return the rates of every compressible tensor, by ``TensorInfo.name``.

    Two forward passes for each tensor: about a minute for 26 million parameters on two cores. With
    a ``cache`` they are run once for a model and its calibration.

    Args:
        captured: The model.
        calibration: See ``calibrate.calibration_batches``.
        windows: Windows of tokens to run on.
        window: Tokens in a window.
        device: Where to run, ``cpu`` or ``cuda``.
        seed: Which windows.
        cache: Directory where measured losses are kept; None keeps none.
        progress: Called with (tensors done, tensors in all).

    Raises:
        CalibrationError: Unusable calibration data, or outputs that are not finite.
    """
    batches = calibration_batches(captured, calibration, windows=windows, window=window, seed=seed)
    tensors = [tensor for tensor in captured.tensors if tensor.compressible]
    rates = {}
    with Measured.of(cache, captured, batches[:windows]) as measured:
        known = all(measured.knows(tensor.name, _LOSSES) for tensor in tensors)
        probe = None if known else _probe(captured, batches[:windows], device)
        for done, tensor in enumerate(tensors):
            rates[tensor.name] = _rates(probe, tensor.name, measured)
            if progress is not None:
                progress(done + 1, len(tensors))
    return rates


def _probe(captured: CapturedModel, batches: Sequence[Mapping[str, Any]], device: str) -> _Probe:
    """Return the dense model and what it says to ``batches``.

    Raises:
        CalibrationError: It says nothing finite.
    """
    module = captured.loader().float().to(device)
    inputs = [tree_map_only(Tensor, lambda t: t.to(device), dict(b)) for b in batches]
    probe = _Probe(module, inputs, outputs(module, inputs), captured.task == "causal-lm")
    if not all(bool(torch.isfinite(y).all()) for y in probe.dense):
        raise CalibrationError(f"{captured.name}: its outputs on the calibration are not finite")
    return probe


def _rates(probe: _Probe | None, name: str, measured: Measured) -> Rates:
    """Return the rates of one tensor from the losses of its two damages."""

    def rounding() -> float:
        assert probe is not None
        return probe.loss_with(name, round_off)

    def pruning() -> float:
        assert probe is not None
        return probe.loss_with(name, take_away)

    rounded = measured.loss(name, _LOSSES[0], rounding)
    removed = measured.loss(name, _LOSSES[1], pruning)
    return Rates(
        rounding=rounded / gaussian_error(BITS, GROUP_SIZE, Pattern()),
        pruning=removed / gaussian_error(16, 0, Pattern(sparsity=SPARSITY)),
    )


def outputs(module: nn.Module, inputs: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Return the main output for every input."""
    with torch.inference_mode():
        return [first_tensor(module(**kwargs)).float() for kwargs in inputs]


def distance(dense: Outputs, found: Outputs, *, language_model: bool) -> float:
    """Return the KL divergence of next tokens, or the relative squared error of other outputs."""
    if language_model:
        return mean_kl(dense, found)
    error = sum(float((y - d).double().square().sum()) for y, d in zip(found, dense, strict=True))
    return error / sum(float(d.double().square().sum()) for d in dense)


def mean_kl(dense: Outputs, found: Outputs) -> float:
    """Return the mean KL(dense‖found) per position, in nats, of logits [..., vocabulary]."""
    total, count = 0.0, 0
    for d, y in zip(dense, found, strict=True):
        log_p, log_q = functional.log_softmax(d, -1), functional.log_softmax(y, -1)
        total += float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
        count += d[..., 0].numel()
    return max(total / count, 0.0)


def round_off(matrix: Tensor) -> Tensor:
    """Return ``matrix`` [N, K] as the first damage leaves it."""
    return round_groups(matrix, BITS, GROUP_SIZE)


def take_away(matrix: Tensor) -> Tensor:
    """Return ``matrix`` [N, K] as the second damage leaves it."""
    return remove_smallest(matrix, SPARSITY)


def round_groups(matrix: Tensor, bits: int, group_size: int) -> Tensor:
    """Return ``matrix`` [N, K] rounded to nearest in groups, each with the best of a few scales."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    columns = matrix.shape[1]
    padded = functional.pad(matrix, (0, -columns % group_size))
    groups = padded.reshape(-1, group_size)
    reach = groups.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    best, error = groups, torch.full_like(reach, torch.inf)
    for clip in _CLIPS:
        scale = clip * reach / -low
        rounded = (groups / scale).round().clamp(low, high) * scale
        found = (rounded - groups).square().sum(dim=1, keepdim=True)
        best = torch.where(found < error, rounded, best)
        error = torch.minimum(error, found)
    return best.reshape(padded.shape)[:, :columns]


def remove_smallest(matrix: Tensor, sparsity: float) -> Tensor:
    """Return ``matrix`` [N, K] without the smallest of each row."""
    removed = int(sparsity * matrix.shape[1])
    order = matrix.abs().argsort(dim=1)[:, :removed]
    return matrix.scatter(1, order, 0.0)
