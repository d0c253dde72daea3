"""The one calibration driver: it owns hooks, the layer loop and what is in memory when.

Groups of modules are solved in running order, each from inputs that went through everything solved
before it. Where the model is a chain of blocks (``record.Chain``) the hidden tensors between blocks
are kept and one block at a time is on the device; else the whole model is run for every group.
A module that runs after its tensor was needed elsewhere (a head tied to the embedding) is solved
where it runs last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from edgesparse.calibrate.activations import Activations
from edgesparse.calibrate.hidden import first_hidden
from edgesparse.calibrate.inputs import as_matrix, has_inputs
from edgesparse.calibrate.record import Group, find_chain, groups_of, record
from edgesparse.calibrate.replay import Room
from edgesparse.calibrate.residence import Residence
from edgesparse.calibrate.stages import BlockStage, Rest, Stage, WholeModel
from edgesparse.calibrate.statistics import Accumulator, Statistic, Statistics
from edgesparse.calibrate.team import Team
from edgesparse.calibrate.windows import Batch
from edgesparse.errors import CalibrationError

_log = logging.getLogger(__name__)

Solve = Callable[[tuple[str, ...], Statistics], None]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a calibration works with.

    Attributes:
        device: Where blocks run and solvers compute.
        residence: Where the weights are.
        activations: Makes an empty list for the hidden tensors between blocks.
        team: The processes that share the work.
        room: For outputs that would else be computed again; see ``calibrate.replay``.
        is_finished: Whether a group needs no statistics: an earlier run solved it.
    """

    device: torch.device
    residence: Residence = field(default_factory=Residence)
    activations: Callable[[], Activations] = Activations
    team: Team = field(default_factory=Team)
    room: Room = field(default_factory=Room)
    is_finished: Callable[[tuple[str, ...]], bool] = lambda _modules: False


@torch.no_grad()
def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    needs: Mapping[str, frozenset[Statistic]],
    solve: Solve,
    *,
    resources: Resources,
) -> None:
    """Call ``solve`` for every group of modules with the statistics of their common input.

    Args:
        model: A private copy in float32 on the CPU, or the skeleton of ``resources.residence``;
            ``solve`` changes its weights.
        batches: Keyword arguments of forward passes; without any, all statistics are empty.
        needs: Module path → what its solver asks for. Modules whose inputs cannot be told (not
            linear, not a convolution) are solved first, with empty statistics.
        solve: Receives module paths and statistics on ``device``; writes the new weights.
        resources: What to work with.

    Raises:
        CalibrationError: Activations that are not finite; the message names the layer.
    """
    seeing = [m for m in needs if batches and has_inputs(model.get_submodule(m))]
    dense = any(Statistic.DENSE_TARGET in needs[m] for m in seeing)
    stages = iter(_stages(model, batches, seeing, resources, dense=dense)) if seeing else iter(())
    stage = next(stages, None)  # looks at the model before anything is changed
    for module in needs:
        if module not in set(seeing):
            _solve_blindly(model.get_submodule(module), module, solve, resources.residence)
    while stage is not None:
        _solve_stage(stage, model, needs, solve, resources)
        stage = next(stages, None)


def _solve_blindly(module: nn.Module, path: str, solve: Solve, residence: Residence) -> None:
    """Solve a module whose inputs nobody sees, on the CPU."""
    residence.bring([module], torch.device("cpu"))
    solve((path,), Statistics(columns=_columns(module)))
    residence.release([module])


def _stages(
    model: nn.Module,
    batches: Sequence[Batch],
    modules: list[str],
    resources: Resources,
    *,
    dense: bool,
) -> Iterator[Stage]:
    """Yield the stages in running order; each has to be solved before the next is asked for.

    The uncompressed model's part is taken from the model as it is when the first is asked for.
    """
    device, residence = resources.device, resources.residence
    with residence.passing(model):
        recording = record(model, _sample(model, batches[0]), modules, torch.device("cpu"))
    chain, groups = find_chain(model, recording, modules), groups_of(recording, modules)
    del recording
    batches = resources.team.share(batches)
    if chain is None:
        _log.info("no chain of blocks found: the whole model runs for each of its layers")
        residence.require_whole()
        yield WholeModel(model, batches, groups, device, resources.room, keep_dense=dense)
        return
    new = resources.activations
    hiding = partial(
        first_hidden, model, batches, chain, device, residence=residence, activations=new
    )
    start = hiding().now if dense else None
    owners = [chain.owner(group.modules[0]) for group in groups]
    inside = [i for i, owner in enumerate(owners) if owner is not None]
    outside = [i for i, owner in enumerate(owners) if owner is None]
    before = [groups[i] for i in outside if i < inside[0]]
    yield Rest(model, batches, before, chain, device, residence)
    hidden = hiding()
    hidden.dense = start
    after = [groups[i] for i in outside if i > inside[0]]
    last = next(b for b in reversed(chain.blocks) if after or b in owners)
    for block in chain.blocks:
        own = [g for g, owner in zip(groups, owners, strict=True) if owner == block]
        stage = BlockStage(
            model.get_submodule(block), block, own, hidden, device, residence, resources.room
        )
        yield stage
        if block == last and not after:
            stage.leave()
            return
        stage.advance()
    yield Rest(model, batches, after, chain, device, residence, hidden=hidden)


def _solve_stage(
    stage: Stage,
    model: nn.Module,
    needs: Mapping[str, frozenset[Statistic]],
    solve: Solve,
    resources: Resources,
) -> None:
    """Gather and solve the groups of one stage in order."""
    if not stage.groups:
        return
    with stage:
        for group in stage.groups:
            module = model.get_submodule(group.modules[0])
            if resources.is_finished(group.modules):
                solve(group.modules, Statistics(columns=_columns(module)))
                continue
            need = frozenset().union(*(needs[name] for name in group.modules))
            sums = Accumulator(_columns(module), need, resources.device)
            for inputs, dense_inputs in stage.inputs(group, need):
                sums.add(inputs, dense_inputs)
                del inputs, dense_inputs  # they are large, and the next are on their way
            statistics = sums.result(resources.team)
            _require_finite(statistics, group)
            if not statistics.samples and need:
                _log.warning("%s: no calibration sample reaches it", ", ".join(group.modules))
            solve(group.modules, statistics)


def _require_finite(statistics: Statistics, group: Group) -> None:
    """Refuse statistics of activations that are NaN or infinite, naming the layer."""
    for value in (statistics.square_sum, statistics.hessian, statistics.dense_cross):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise CalibrationError(
                f"{', '.join(group.modules)}: the inputs are NaN or infinite on the calibration "
                "data; check the data and the source model's weights up to this layer"
            )


def _columns(module: nn.Module) -> int:
    """Return K of a module's weight: what one output is a product over."""
    weight = getattr(module, "weight", None)
    return as_matrix(weight).shape[1] if isinstance(weight, torch.Tensor) else 0


def _sample(model: nn.Module, batch: Batch) -> Batch:
    """Return one sample of a batch; all of it for a program exported with a fixed batch size."""
    sizes = {len(v) for v in batch.values() if isinstance(v, torch.Tensor) and v.dim()}
    if isinstance(model, torch.fx.GraphModule) or len(sizes) != 1:
        return batch
    return {n: v[:1] if isinstance(v, torch.Tensor) and v.dim() else v for n, v in batch.items()}
