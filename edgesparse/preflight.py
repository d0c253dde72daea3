"""Whether there is memory for a compression, worked out from shapes before hours are spent.

``compress`` asks about the plan it carries out, and the command line before that about the plan as
asked for: measuring what the model minds runs it, and may end in another plan. So these are two
questions, and the answer to one is no answer to the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from edgesparse.batchnorm import find_pairs
from edgesparse.budget import format_size
from edgesparse.calibrate import Statistic
from edgesparse.calibrate.visit import module_of
from edgesparse.errors import UsageError
from edgesparse.footprint import Footprint, fit_in_memory
from edgesparse.memory import require_memory
from edgesparse.model import CapturedModel, TensorKind
from edgesparse.planner import Plan, TensorPlan
from edgesparse.solve import needs_of

_FLOAT_NBYTES = 4


def work_of(plan: Plan) -> dict[str, TensorPlan]:
    """Return the tensors that are compressed, by name."""
    return {entry.tensor.name: entry for entry in plan.tensors if entry.spec is not None}


def room_for(
    captured: CapturedModel,
    plan: Plan,
    *,
    device: str,
    window: int,
    memory_limit: int | None,
    measured: bool,
    at_most: int | None = None,
) -> Footprint:
    """Return how a compression is cut to size.

    Args:
        captured: The model.
        plan: What is done to it.
        device: Where blocks run.
        window: Tokens in a window.
        memory_limit: Bytes of memory that this process may hold; None holds the whole model.
        measured: Whether there are calibration inputs to measure errors on.
        at_most: The size of the batches of an earlier run that is gone on with: sums depend on it.

    Raises:
        UsageError: The limit cannot be kept, this model cannot be read block by block, or there is
            less memory than weights and no limit.
    """
    batch_size = 8 if device.startswith("cpu") else 32
    if memory_limit is None:
        needed = _FLOAT_NBYTES * captured.num_parameters
        require_memory(
            needed,
            f"{captured.name}: its weights in float32",
            f"with --memory-limit, {format_size(needed // 4)} say, they are read block by block",
        )
        return Footprint(batch_size=batch_size)
    model, todo = streamable(captured), work_of(plan)
    needs = needs_by_module(model, todo, measured=measured)
    return fit_in_memory(
        model, todo, needs, window, min(batch_size, at_most or batch_size), memory_limit
    )


def streamable(captured: CapturedModel) -> nn.Module:
    """Return the skeleton of a model whose weights can be read block by block.

    Raises:
        UsageError: They cannot.
    """
    why = ""
    if getattr(captured.weights(), "is_converted", False):
        why = "its files use other names than the model, and transformers converts them in memory"
    elif find_pairs(captured):
        why = "it has batch norms, which are folded in the whole model"
    if why:
        raise UsageError(f"{captured.name} cannot be streamed: {why}; run it without memory limit")
    return captured.skeleton()


def needs_by_module(
    model: nn.Module, todo: Mapping[str, TensorPlan], *, measured: bool
) -> dict[str, frozenset[Statistic]]:
    """Return what every module's solver asks for, and the Hessian to measure the error with."""
    needs = {}
    extra = frozenset({Statistic.HESSIAN}) if measured else frozenset()
    for planned in todo.values():
        assert planned.rule is not None
        assert planned.spec is not None
        wanted = needs_of(planned.rule, planned.spec) | extra
        if planned.tensor.kind is TensorKind.EXPERT:
            # Compressed and dense model may send other tokens here: their rows do not pair up.
            wanted -= {Statistic.DENSE_TARGET}
        needs[module_of(model, planned.tensor)] = wanted
    return needs
