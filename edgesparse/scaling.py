"""Activation-aware scaling (Lin et al. 2023, AWQ, arXiv 2306.00978), folded into what comes before.

    x Wᵀ = (x / s) (W s)ᵀ        s = |x|^α

Columns that strong inputs multiply are scaled up before they are rounded. ``1 / s`` goes into what
made the input, a norm or a linear layer, so that nothing is added to the model. Whether a layer is
what made an input, and nothing else reads it, is not taken from names: it is tried, with random
factors, and folded only where the model's outputs stay the same. ``α`` is the one of 20 with the
least output error of all layers with that input, each rounded to nearest; 0 changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgesparse.calibrate import Resources, Statistic, Statistics, calibrate
from edgesparse.calibrate.inputs import as_matrix
from edgesparse.calibrate.record import Group, Recording, call_model, groups_of, record
from edgesparse.calibrate.replay import Room
from edgesparse.calibrate.visit import module_of
from edgesparse.calibrate.windows import Batch
from edgesparse.model import CapturedModel
from edgesparse.packed import TABLE
from edgesparse.planner import TensorPlan
from edgesparse.quantize.grid import Grid
from edgesparse.runtime.forward import first_tensor
from edgesparse.solve import grid_of

_POWERS = tuple(i / 20 for i in range(1, 21))
_LEAST = 1e-4  # of the strongest input: what a column's strength is taken to be at least
_TOLERANCE = 1e-3  # of the largest output; a wrong fold changes outputs by their own size
_TRIED = 4  # linear layers before a group that could have made its input


@dataclass(frozen=True)
class Fold:
    """Layers with a common input, and what makes it.

    Attributes:
        producer: Path of a norm or a linear layer.
        consumers: Paths of linear layers.
        source: Which output of the producer each column is, int64 [K].
    """

    producer: str
    consumers: tuple[str, ...]
    source: Tensor


def scale_activations(
    model: nn.Module,
    captured: CapturedModel,
    todo: Mapping[str, TensorPlan],
    batches: Sequence[Batch],
    device: torch.device,
) -> dict[str, Tensor]:
    """Scale columns and fold the inverse into the layers before, in place.

    Args:
        model: A private copy with its weights, in float32 on the CPU.
        captured: Where it came from.
        todo: The tensors that will be packed, by name.
        batches: Calibration inputs.
        device: Where blocks run.

    Returns:
        The tensors that changed and will not be packed, by name, in their stored types.
    """
    grids = {
        module_of(model, planned.tensor): grid_of(
            planned.spec, planned.tensor.matrix_shape[1], is_shared=planned.rule.one_scale
        )
        for planned in todo.values()
        if planned.rule is not None
        and planned.spec is not None
        and planned.spec.bits < 16
        and planned.spec.scheme != TABLE
    }
    folds = {
        fold.consumers[0]: fold for fold in find_folds(model, batches[0], set(grids), captured)
    }
    found: list[tuple[Fold, Tensor]] = []

    def see(modules: tuple[str, ...], statistics: Statistics) -> None:
        fold = folds[modules[0]]
        weights = {path: as_matrix(_weight(model, path)) for path in fold.consumers}
        factors = best_factors(weights, grids, statistics, fold.source)
        if factors is not None:
            found.append((fold, factors.cpu()))

    needs = {path: frozenset({Statistic.HESSIAN}) for path in folds}
    if needs:
        resources = Resources(device=device, room=Room.on(device))
        calibrate(model, batches, needs, see, resources=resources)
    changed: dict[str, Tensor] = {}
    for fold, factors in found:
        apply(model, fold, factors)
        for leaf, parameter in model.get_submodule(fold.producer).named_parameters(recurse=False):
            name = captured.by_name[f"{fold.producer}.{leaf}"].name
            if name not in todo:
                stored = parameter.data.to(getattr(torch, captured.by_name[name].dtype))
                parameter.data.copy_(stored)
                changed[name] = stored
    return changed


def find_folds(
    model: nn.Module, batch: Batch, rounded: set[str], captured: CapturedModel
) -> list[Fold]:
    """Return every fold that leaves the model's outputs as they are, in running order.

    Args:
        model: In float32 on the CPU; as it was afterwards.
        batch: Inputs to try on, of which one example is used.
        rounded: Paths of the layers whose weights will be rounded.
        captured: For the width of attention heads.
    """
    one = {n: v[:1] if isinstance(v, Tensor) and v.dim() else v for n, v in batch.items()}
    modules = dict(model.named_modules())
    linear = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
    norms = {path for path, module in modules.items() if _is_norm(module)}
    cpu, folds = torch.device("cpu"), []
    with torch.no_grad():
        recording = record(model, one, [*linear, *norms], cpu)
        wanted = first_tensor(call_model(model, one, cpu)).clone()
        for group in groups_of(recording, linear):
            if group.calls != 1 or not set(group.modules) <= rounded:
                continue
            for fold in _candidates(model, recording, group, norms, _head_width(captured)):
                if _keeps_outputs(model, fold, one, wanted):
                    folds.append(fold)
                    break
    return folds


def best_factors(
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    statistics: Statistics,
    source: Tensor,
) -> Tensor | None:
    """Return the factor of each output of the producer, float32 [rows]; None changes nothing.

    Args:
        weights: float32 [N, K] by path.
        grids: What each is rounded to.
        statistics: Of their common input.
        source: Which output of the producer each column is, int64 [K].
    """
    H = statistics.second_moment(next(iter(weights.values())).device)
    source = source.to(H.device)
    count = torch.bincount(source).float()
    power = torch.zeros_like(count).index_add_(0, source, H.diagonal()) / count
    strength = power.sqrt()
    if not bool(strength.any()):
        return None
    strength = strength.clamp(min=_LEAST * float(strength.max()))
    weights = {path: weight.to(H.device) for path, weight in weights.items()}

    def error(factors: Tensor) -> float:
        wide, total = factors[source], 0.0
        for path, weight in weights.items():
            scaled = weight * wide
            rounded = grids[path].round(scaled, grids[path].search(scaled)) / wide
            total += statistics.output_error(weight, rounded)
        return total

    best, least = None, error(torch.ones_like(strength))
    for exponent in _POWERS:
        factors = strength**exponent
        factors = factors / (factors.max() * factors.min()).sqrt()
        found = error(factors)
        if found < least:
            best, least = factors, found
    return best


def apply(model: nn.Module, fold: Fold, factors: Tensor) -> None:
    """Multiply the consumers' columns, divide the producer's outputs, in place."""
    for path in fold.consumers:
        weight = _weight(model, path)
        weight.data = weight.data * factors[fold.source]
    for parameter in model.get_submodule(fold.producer).parameters(recurse=False):
        shape = (-1, *[1] * (parameter.dim() - 1))
        parameter.data = parameter.data / factors.reshape(shape)


def _candidates(
    model: nn.Module, recording: Recording, group: Group, norms: set[str], head_width: int
) -> Iterator[Fold]:
    """Yield what may have made a group's input: the norm that returned it, then linear layers."""
    call = recording.of(group.modules[0])[0]
    inputs = call.args[0] if call.args else next(iter(call.kwargs.values()))
    columns = inputs.shape[-1]
    before = list(itertools.takewhile(lambda other: other is not call, recording.calls))
    for other in before:
        if other.output is inputs and other.module in norms:
            yield Fold(other.module, group.modules, torch.arange(columns))
    linear = [c.module for c in before if isinstance(model.get_submodule(c.module), nn.Linear)]
    for path in linear[: -_TRIED - 1 : -1]:
        rows = len(_weight(model, path))
        if rows == columns:
            yield Fold(path, group.modules, torch.arange(columns))
        elif columns % rows == 0 and head_width and rows % head_width == 0:
            # Grouped-query attention: every head of values is read by several heads of queries.
            heads = torch.arange(rows).reshape(-1, 1, head_width)
            source = heads.expand(-1, columns // rows, -1).reshape(-1)
            yield Fold(path, group.modules, source)


def _keeps_outputs(model: nn.Module, fold: Fold, batch: Batch, wanted: Tensor) -> bool:
    """Whether the outputs stay as they are under random factors; the model stays as it is."""
    touched = [model.get_submodule(path) for path in (*fold.consumers, fold.producer)]
    before = [(p, p.data) for module in touched for p in module.parameters(recurse=False)]
    rows = int(fold.source.max()) + 1
    factors = torch.empty(rows).uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    try:
        apply(model, fold, factors)
        found = first_tensor(call_model(model, batch, torch.device("cpu")))
    finally:
        for parameter, data in before:
            parameter.data = data
    return float((found - wanted).abs().max()) <= _TOLERANCE * float(wanted.abs().max())


def _weight(model: nn.Module, path: str) -> Tensor:
    return model.get_parameter(f"{path}.weight")


def _is_norm(module: nn.Module) -> bool:
    """Whether all a module owns are vectors, and it holds no other modules."""
    own = list(module.parameters())
    return bool(own) and not list(module.children()) and all(p.dim() == 1 for p in own)


def _head_width(captured: CapturedModel) -> int:
    """Return the width of an attention head, 0 if the configuration does not say."""
    config = captured.config
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    given = config.get("head_dim")
    if isinstance(given, int):
        return given
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else 0
