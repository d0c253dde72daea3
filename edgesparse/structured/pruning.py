"""Remove the channels that matter least, and refit what reads the others.

A channel's importance is the size of what its readers make of it on calibration inputs,
``|x_i| · |W[:, i]|`` summed over the readers (Wanda's product, Sun et al. 2023, arXiv 2306.11695,
of whole columns). After the cut every linear reader is refitted to its old outputs,

    W' = W H[:, keep] (H[keep, keep] + λ)⁻¹      with H = XᵀX of its inputs,

which is the least-squares solution, so that the remaining channels stand in for the removed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate import calibration_batches
from edgesparse.capture.module import capture_module
from edgesparse.errors import CalibrationError, RecipeError, UsageError
from edgesparse.model import CapturedModel
from edgesparse.structured.groups import Group, find_groups
from edgesparse.structured.surgery import cut, kept_channels

_DAMPING = 1e-4


def prune_structured(
    captured: CapturedModel,
    *,
    keep: float,
    calibration: object = None,
    multiple: int = 8,
    refit: bool = True,
    windows: int = 32,
    window: int = 512,
    seed: int = 0,
) -> CapturedModel:
    """Return a model with a share of every group of channels, and smaller tensors.

    Args:
        captured: The model; not changed.
        keep: Share of the channels that stay, above 0 and at most 1.
        calibration: See ``calibrate.calibration_batches``; None runs the example inputs.
        multiple: Sizes are rounded up to a multiple of this, for kernels that like it.
        refit: Whether the readers are refitted to their old outputs.
        windows: Windows of tokens to run on.
        window: Tokens in a window.
        seed: Which windows.

    Raises:
        RecipeError: ``keep`` or ``multiple`` out of range.
        UsageError: The model has no channels that can be cut.
        CalibrationError: Unusable calibration data, or a refit that ran away.
    """
    if not 0 < keep <= 1 or multiple < 1:
        raise RecipeError(
            f"keep is {keep} and multiple is {multiple}; expected 0 < keep <= 1 and 1 or more"
        )
    module = captured.loader().float()
    groups = find_groups(captured, module)
    if not groups:
        raise UsageError(
            f"{captured.name} has no channels that can be cut: all of them reach a normalization, "
            "a split into heads, or the output"
        )
    batches: Sequence[Mapping[str, Any]] = [captured.example_inputs]
    if calibration is not None:
        batches = calibration_batches(
            captured, calibration, windows=windows, window=window, seed=seed
        )
    moments = _second_moments(module, groups, batches)
    chosen = {}
    for group in groups:
        count = min(group.size, -(-round(keep * group.size) // multiple) * multiple)
        chosen[group] = kept_channels(importance(module, group, moments), max(count, 1))
        if refit:
            _refit(module, group, chosen[group], moments)
    cut(module, chosen)
    _restore_dtypes(module, captured)
    small = capture_module(module.eval(), captured.example_inputs)
    source = replace(captured.source, kind="module", weights=(), recorded_sha256="")
    return replace(small, source=source, task=captured.task, config=captured.config)


def _restore_dtypes(module: nn.Module, captured: CapturedModel) -> None:
    """Bring every tensor back to its stored type, in place.

    Raises:
        CalibrationError: A refitted weight does not fit in it.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in state.items():
        info = captured.by_name.get(name)
        if info is None:
            continue
        tensor.data = tensor.data.to(getattr(torch, info.dtype))
        if not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(
                f"{name}: a refitted weight exceeds {info.dtype}; give more calibration inputs, "
                "or do not refit"
            )


def importance(module: nn.Module, group: Group, moments: Mapping[str, Tensor]) -> Tensor:
    """Return the score of every channel of a group, float32 [size]."""
    score = torch.zeros(group.size)
    for reader in group.readers:
        weight = module.get_parameter(reader.name).detach()
        column = weight.movedim(reader.dim, 0).flatten(1).square().sum(dim=1)
        energy = moments[reader.name].diagonal() if reader.name in moments else torch.ones(())
        score += (column * energy).sqrt()
    return score


def _second_moments(
    module: nn.Module, groups: Sequence[Group], batches: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return XᵀX of the inputs of every linear reader, by the name of its weight."""
    moments: dict[str, Tensor] = {}
    hooks = []
    for reader in {reader for group in groups for reader in group.readers}:
        layer = module.get_submodule(reader.name.rpartition(".")[0])
        if isinstance(layer, nn.Linear):
            hooks.append(layer.register_forward_pre_hook(_adder(moments, reader.name)))
    try:
        with torch.no_grad():
            for kwargs in batches:
                module(**kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _adder(moments: dict[str, Tensor], name: str) -> Any:
    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        moments[name] = moments.get(name, torch.zeros(())) + x.T @ x

    return add


def _refit(module: nn.Module, group: Group, keep: Tensor, moments: Mapping[str, Tensor]) -> None:
    """Move what the removed channels gave into the columns of those that stay."""
    for reader in group.readers:
        if reader.name not in moments:
            continue
        weight, H = module.get_parameter(reader.name), moments[reader.name].double()
        inner = H[keep][:, keep]
        inner = inner + _DAMPING * inner.diagonal().mean().clamp_min(1e-12) * torch.eye(len(keep))
        target = weight.detach().double() @ H[:, keep]
        fitted = torch.linalg.solve(inner, target.T).T
        weight.data[:, keep] = fitted.float()
