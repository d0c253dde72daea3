"""What a streamed compression holds at once, from shapes alone, and how it is made to fit a limit.

    beside the blocks   the tensors outside them, the statistics of the widest of these that is
                        solved, and solving the largest
    in a block          its weights as they are stored and mapped, and in float32 (twice where a
                        method wants the dense model's inputs too), and either running it and
                        gathering the statistics of its widest layer, sums in float64, or these
                        rounded, and solving its largest tensor

Each counts beside what the process holds before it begins, and what it will load and compile while
it runs. What then remains under the limit is for
the activations between blocks; more of them than that lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from edgesparse.budget import format_size
from edgesparse.calibrate.activations import Activations
from edgesparse.calibrate.inputs import as_matrix, has_inputs
from edgesparse.calibrate.residence import outermost_blocks
from edgesparse.calibrate.statistics import Statistic
from edgesparse.errors import UsageError
from edgesparse.memory import resident_nbytes
from edgesparse.packed import matrix_shape
from edgesparse.planner import TensorPlan

# Copies of a weight in float32 while it is solved and packed: scores, order, codes, cells. So many
# that a block of bench/larger_than_memory.py is foreseen to take what it was seen to take.
_SOLVE_COPIES = 9
_WHOLE_COPIES = 4  # of a tensor solved some rows at a time: codes and masks, and packing them,
_DENSE_COPIES = 2  # which takes less without a mask,
_PIECE_COPIES = 12  # and of those rows
_SQUARES = 8  # float32 [K, K] beside the statistics: what is factorized, and what is kept of it
_RUN_COPIES = 3  # of the outputs of a block's layers
_MARGIN = 1.05
LOADED_LATER = 400_000_000
"""Bytes of libraries and compiled kernels that come when they are first used: measured, so much
more than their shapes say took 93 million parameters under a limit."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """How a compression is cut to size.

    Attributes:
        batch_size: Windows or examples run at once.
        activations_nbytes: Of hidden tensors held in memory; None holds all.
    """

    batch_size: int
    activations_nbytes: int | None = None

    def activations(self, directory: Path | None) -> Callable[[], Activations]:
        """Return what makes a list of hidden tensors; two lists may be held at once."""
        if self.activations_nbytes is None:
            return Activations
        return partial(Activations, self.activations_nbytes // 2, directory)


def fit_in_memory(
    model: nn.Module,
    todo: Mapping[str, TensorPlan],
    needs: Mapping[str, frozenset[Statistic]],
    window: int,
    batch_size: int,
    limit: int,
) -> Footprint:
    """Return the largest batches, ``batch_size`` at most, with which the limit is kept.

    Args:
        model: The skeleton, parameters on the meta device in the types they are stored in.
        todo: The tensors that are solved.
        needs: Statistics by module.
        window: Rows of one example: tokens of a window.
        batch_size: Most examples at once.
        limit: Bytes this process may hold.

    Raises:
        UsageError: Not even one example at a time fits.
    """
    sizes = _Sizes.of(model, todo, needs)
    held = resident_nbytes() + LOADED_LATER
    while True:
        needed = int(_MARGIN * sizes.peak(batch_size * window)) + held
        between = 2 * batch_size * window * sizes.hidden * 4  # one batch in, one out
        if needed + between <= limit:
            return Footprint(batch_size=batch_size, activations_nbytes=limit - needed)
        if batch_size == 1:
            raise UsageError(
                f"memory limit {format_size(limit)}: the largest block takes "
                f"{format_size(needed + between)} ({sizes.words()}, the program "
                f"{format_size(held)}); raise the limit, or shorten --window"
            )
        batch_size //= 2


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Bytes of what is held together."""

    outside: int
    block: int
    statistics: int
    statistics_outside: int
    gathering: int
    solving: int
    solving_outside: int
    row: int
    hidden: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        todo: Mapping[str, TensorPlan],
        needs: Mapping[str, frozenset[Statistic]],
    ) -> _Sizes:
        blocks = outermost_blocks(model)
        inside = {id(p) for block in blocks for p in block.parameters()}
        named = dict(model.named_parameters())
        matrices = {name: matrix_shape(tuple(named[name].shape)) for name in todo}
        within = [name for name in todo if id(named[name]) in inside]
        beyond = [name for name in todo if id(named[name]) not in inside]
        solved = frozenset().union(*needs.values())
        squares = (Statistic.HESSIAN in solved) + (Statistic.DENSE_TARGET in solved)
        factorizes = any(_factorizes(todo[name]) for name in todo)
        square = 4 * (squares + (_SQUARES if factorizes else 0))
        widest = _widest(matrices[name] for name in within)
        twins = 2 if Statistic.DENSE_TARGET in solved else 1
        return cls(
            outside=4 * sum(p.numel() for p in model.parameters() if id(p) not in inside),
            block=max((4 * twins * _numel(b) + _stored(b) for b in blocks), default=0),
            statistics=square * widest**2,
            statistics_outside=square * _widest(matrices[name] for name in beyond) ** 2,
            gathering=4 * widest**2 * (2 * squares + 1),
            solving=4 * max((_solving(todo[n], matrices[n]) for n in within), default=0),
            solving_outside=4 * max((_solving(todo[n], matrices[n]) for n in beyond), default=0),
            row=4 * _RUN_COPIES * max((_outputs(block) for block in blocks), default=0),
            hidden=min((matrices[name][1] for name in within), default=0),
        )

    def peak(self, rows: int) -> int:
        """Return the most held at once when ``rows`` rows run together."""
        running = self.gathering + rows * self.row
        in_block = self.block + max(running, self.statistics + self.solving)
        return max(self.outside + self.statistics_outside + self.solving_outside, in_block)

    def words(self) -> str:
        """Say what takes the most."""
        terms = {
            "tensors outside of blocks": self.outside + self.solving_outside,
            "weights of a block": self.block,
            "statistics": self.statistics,
            "solving its largest tensor": self.solving,
        }
        return ", ".join(f"{name} {format_size(value)}" for name, value in terms.items())


def _solving(planned: TensorPlan, shape: tuple[int, int]) -> int:
    """Return the numbers held while a tensor is solved."""
    from edgesparse.pieces import AT_ONCE, is_solved_by_rows

    assert planned.rule is not None
    assert planned.spec is not None
    if is_solved_by_rows(planned.rule, planned.spec, shape[1]) is None:
        return _SOLVE_COPIES * _product(shape)
    copies = _DENSE_COPIES if planned.spec.name.startswith("dense") else _WHOLE_COPIES
    return copies * _product(shape) + _PIECE_COPIES * min(AT_ONCE, _product(shape))


def _factorizes(planned: TensorPlan) -> bool:
    from edgesparse.solve import needs_of

    assert planned.rule is not None
    assert planned.spec is not None
    return bool(needs_of(planned.rule, planned.spec) & {Statistic.HESSIAN, Statistic.DENSE_TARGET})


def _outputs(block: nn.Module) -> int:
    """Return the outputs of all layers of a block for one row."""
    layers = [module for module in block.modules() if has_inputs(module)]
    return sum(as_matrix(layer.get_parameter("weight")).shape[0] for layer in layers)


def _stored(block: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in block.parameters())


def _numel(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters())


def _widest(shapes: Iterable[tuple[int, int]]) -> int:
    """Return the most columns."""
    return max((columns for _, columns in shapes), default=0)


def _product(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]
