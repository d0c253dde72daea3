"""Remove the parts that matter least, and refit what reads the others.

Layers go first, then experts, then units of groups: what is left is judged as it then is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from edgesparse.calibrate import calibration_batches
from edgesparse.calibrate.record import disable_cache
from edgesparse.capture.module import capture_module
from edgesparse.errors import CalibrationError, RecipeError, UsageError
from edgesparse.model import CapturedModel
from edgesparse.structured.checked import cut_exactly
from edgesparse.structured.experts import drop_experts, lower_top_k
from edgesparse.structured.groups import Group, Part, find_groups
from edgesparse.structured.importance import METHODS, magnitude, second_moments, taylor, wanda
from edgesparse.structured.layers import drop_layers
from edgesparse.structured.merging import merge_experts
from edgesparse.structured.observing import Batches
from edgesparse.structured.refit import refit_readers, rescale_norms
from edgesparse.structured.surgery import kept_channels
from edgesparse.structured.writing import fitting_config


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What is to go.

    Attributes:
        channels: Share of the feed-forward neurons and convolution channels.
        heads: Share of the attention heads, in groups that share their keys.
        width: Share of the residual stream.
        layers: Number of whole layers.
        experts: Number of experts of every mixture.
        merged: Number of experts of every mixture that move into others.
        top_k: Experts a token is sent to; None leaves it.
    """

    channels: float = 0.0
    heads: float = 0.0
    width: float = 0.0
    layers: int = 0
    experts: int = 0
    merged: int = 0
    top_k: int | None = None

    def __post_init__(self) -> None:
        for part in Part:
            if not 0 <= self.share(part) < 1:
                raise RecipeError(f"{part} is {self.share(part)}; expected 0 <= share < 1")
        if min(self.layers, self.experts, self.merged) < 0:
            raise RecipeError("numbers of layers and experts to remove cannot be negative")
        shares = any(self.share(part) for part in Part)
        counts = self.layers or self.experts or self.merged
        if not (shares or counts or self.top_k is not None):
            raise RecipeError("nothing is to be removed; name channels, heads, width, layers, …")

    def share(self, part: Part) -> float:
        """Return the share of the units of a kind of group."""
        return {Part.CHANNELS: self.channels, Part.HEADS: self.heads, Part.WIDTH: self.width}[part]


def prune_structured(
    captured: CapturedModel,
    cuts: Cuts,
    *,
    calibration: object = None,
    importance: str = "wanda",
    multiple: int = 8,
    refit: bool = True,
    windows: int = 32,
    window: int = 512,
    seed: int = 0,
    known: dict[tuple[int, ...], tuple[Group, ...]] | None = None,
) -> CapturedModel:
    """Return a model without the parts that matter least, and with smaller tensors.

    Args:
        captured: The model; not changed.
        cuts: What is to go.
        calibration: See ``calibrate.calibration_batches``; None runs the example inputs.
        importance: ``wanda``, ``taylor`` or ``magnitude``; see ``importance``.
        multiple: Sizes are rounded up to a multiple of this, for kernels that like it; heads,
            layers and experts are counted one by one.
        refit: Whether the readers are refitted to their old outputs.
        windows: Windows of tokens to run on.
        window: Tokens in a window.
        seed: Which windows.
        known: Groups found by earlier calls for this model with the same calibration, by the
            numbers of layers and experts removed; those found here are added. Finding them takes
            most of the time.

    Raises:
        RecipeError: An importance or ``multiple`` that cannot mean anything.
        UsageError: The model has none of the parts that should go.
        CalibrationError: Unusable calibration data, or a refit that ran away.
    """
    if multiple < 1 or importance not in METHODS:
        raise RecipeError(
            f"multiple is {multiple} and importance {importance!r}; expected 1 or more and one of "
            f"{', '.join(METHODS)}"
        )
    module = captured.loader().float()
    disable_cache(module)
    batches: Batches = [captured.example_inputs]
    if calibration is not None:
        batches = calibration_batches(
            captured, calibration, windows=windows, window=window, seed=seed
        )
    if cuts.layers:
        drop_layers(module, batches, cuts.layers)
    if cuts.top_k is not None:
        lower_top_k(module, cuts.top_k)
    if cuts.experts:
        drop_experts(module, batches, cuts.experts)
    if cuts.merged:
        merge_experts(module, batches, cuts.merged)
    if any(cuts.share(part) for part in Part):
        found = _groups(captured, module, cuts, {} if known is None else known)
        _cut_groups(
            captured, module, cuts, found, batches, importance, multiple=multiple, refit=refit
        )
    return _recaptured(captured, module)


def _groups(
    captured: CapturedModel,
    module: nn.Module,
    cuts: Cuts,
    known: dict[tuple[int, ...], tuple[Group, ...]],
) -> tuple[Group, ...]:
    """Return the groups of a module from which layers and experts have gone."""
    key = (cuts.layers, cuts.experts, cuts.merged)
    if key not in known:
        known[key] = find_groups(captured, module)
    return known[key]


def _cut_groups(
    captured: CapturedModel,
    module: nn.Module,
    cuts: Cuts,
    found: Sequence[Group],
    batches: Batches,
    importance: str,
    *,
    multiple: int,
    refit: bool,
) -> None:
    """Cut units of all groups of the kinds asked for, in place."""
    groups = [group for group in found if cuts.share(group.part)]
    missing = {part for part in Part if cuts.share(part)} - {group.part for group in groups}
    if missing:
        raise UsageError(
            f"{captured.name} has no {' or '.join(sorted(missing))} that can be cut: all of them "
            "reach the output, a softmax, or an operation that mixes them"
        )
    moments = second_moments(module, groups, batches) if refit or importance == "wanda" else {}
    if importance == "taylor":
        is_lm = captured.task == "causal-lm"
        scores = taylor(module, groups, batches, language_model=is_lm)
    elif importance == "wanda":
        scores = [wanda(module, group, moments) for group in groups]
    else:
        scores = [magnitude(module, group) for group in groups]
    keep = {}
    for group, score in zip(groups, scores, strict=True):
        step = 1 if group.part is Part.HEADS else multiple
        count = -(-round((1 - cuts.share(group.part)) * group.size) // step) * step
        keep[group] = kept_channels(score, max(1, min(group.size, count)))
    if cuts.width:
        rescale_norms(module, keep, batches)
    if refit:
        refit_readers(module, keep, moments)
    cut_exactly(module, keep, batches[0])


def _recaptured(captured: CapturedModel, module: nn.Module) -> CapturedModel:
    """Return the cut module as a captured model, stored as before, its configuration true."""
    _restore_dtypes(module, captured)
    config = captured.config
    if hasattr(module, "config") and config:
        with suppress(UsageError):  # layers of different sizes: no configuration says them
            fitting: Any = fitting_config(module, captured.example_inputs)
            module.config = fitting
            config = {**fitting.to_dict(), "architectures": config.get("architectures")}
    small = capture_module(module.eval(), captured.example_inputs)
    source = replace(captured.source, kind="module", weights=(), recorded_sha256="")
    return replace(small, source=source, task=captured.task, config=config)


def _restore_dtypes(module: nn.Module, captured: CapturedModel) -> None:
    """Bring every tensor back to the type its like is stored in, in place.

    Raises:
        CalibrationError: A refitted weight does not fit in it.
    """
    types = {tensor.dtype for tensor in captured.tensors}
    only = next(iter(types)) if len(types) == 1 else ""
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        info = captured.by_name.get(name)
        dtype = only or (info.dtype if info is not None else "")
        if not dtype or info is None:
            continue
        tensor.data = tensor.data.to(getattr(torch, dtype))
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(
                f"{name}: a refitted weight exceeds {dtype}; give more calibration inputs, or do "
                "not refit"
            )
