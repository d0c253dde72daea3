"""Stages: a part of the model, how to run it on each batch, and what it needs on the device.

Three kinds: one block of a chain (``BlockStage``), what lies before or after the chain with the
blocks stubbed out (``Rest``), and a model without a chain (``WholeModel``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from edgesparse.calibrate.hidden import Hidden, output_of
from edgesparse.calibrate.record import Chain, Group, call_model, own_parameters
from edgesparse.calibrate.replay import Replay, Room, has_ties
from edgesparse.calibrate.residence import Residence
from edgesparse.calibrate.statistics import Statistic
from edgesparse.calibrate.watch import Stop, outside, rows_of, stubbed
from edgesparse.calibrate.windows import Batch


class Stage(Protocol):
    """A part of the model whose groups are solved together."""

    groups: Sequence[Group]

    def __enter__(self) -> Self:
        """Bring what runs onto the device."""

    def __exit__(self, *_: object) -> None:
        """Take it off again."""

    def inputs(
        self, group: Group, need: frozenset[Statistic]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield (X, X of the uncompressed model) for every batch, [samples, K] each."""


class BlockStage:
    """One block, run from the hidden tensors that came out of the block before it."""

    def __init__(
        self,
        block: nn.Module,
        name: str,
        groups: Sequence[Group],
        hidden: Hidden,
        device: torch.device,
        residence: Residence,
        room: Room,
    ) -> None:
        self.groups = groups
        self._block, self._name, self._hidden, self._device = block, name, hidden, device
        self._residence, self._is_here = residence, False
        self._dense: nn.Module | None = None
        self._solved = {g: [block.get_submodule(self._path(m)) for m in g.modules] for g in groups}
        if has_ties(block, [module for own in self._solved.values() for module in own]):
            room = Room()
        self._replays = {
            dense: [Replay(room) for _ in range(len(hidden))] for dense in (False, True)
        }

    def __enter__(self) -> Self:
        if not self._is_here:
            self._residence.bring(self._block.modules(), self._device)
            self._is_here = True
            if self._hidden.dense is not None:
                self._dense = copy.deepcopy(self._block)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the block where it is: ``advance`` runs it once more."""

    def inputs(
        self, group: Group, need: frozenset[Statistic]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield X of every batch; X of the dense block only where ``need`` asks for it."""
        path = self._path(group.modules[0])
        with_dense = self._dense is not None and Statistic.DENSE_TARGET in need
        later = self.groups[self.groups.index(group) :]
        unsolved = [module for g in later for module in self._solved[g]]
        for i in range(len(self._hidden)):
            rows = rows_of(self._block, path, group, partial(self._run, i, unsolved))
            dense = None
            if with_dense and self._dense is not None:
                run = partial(self._run, i, (), dense=True)
                dense = rows_of(self._dense, path, group, run)
            if rows is not None:
                yield rows, dense
            del rows, dense  # before the next batch runs

    def _run(
        self, batch: int, unsolved: Sequence[nn.Module] | None, *, dense: bool = False
    ) -> Tensor:
        """Return the block's hidden output for one batch; see ``Replay.running``."""
        block = self._dense if dense and self._dense is not None else self._block
        args, kwargs = self._hidden.arguments(self._name, batch, dense=dense)
        with self._replays[dense][batch].running(block, unsolved):
            output = block(*args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden

    def _path(self, module: str) -> str:
        """Return a module's path inside the block."""
        return module[len(self._name) :].lstrip(".")

    def advance(self) -> None:
        """Replace the hidden tensors by this block's outputs and leave the device."""
        self.__enter__()  # a block with nothing to solve has not been entered yet
        for i in range(len(self._hidden)):
            after = self._run(i, None)
            if self._hidden.dense is not None:
                self._hidden.dense[i] = self._run(i, None, dense=True)
            self._hidden.now[i] = after
        self.leave()

    def leave(self) -> None:
        """Leave the device; nothing comes after this block."""
        self._dense = None
        self._replays = {}
        self._residence.release(self._block.modules())
        self._is_here = False


class Rest:
    """What lies outside the chain; the blocks hand on what they already computed."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        groups: Sequence[Group],
        chain: Chain,
        device: torch.device,
        residence: Residence,
        *,
        hidden: Hidden | None = None,
    ) -> None:
        self.groups = groups
        self._model, self._batches, self._chain = model, batches, chain
        self._device, self._hidden, self._residence = device, hidden, residence
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(outside(self._model, self._chain, self._device, self._residence))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def inputs(
        self, group: Group, need: frozenset[Statistic]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield X of every batch; after the chain also X behind the dense blocks, if asked for."""
        with_dense = Statistic.DENSE_TARGET in need
        for i in range(len(self._batches)):
            rows = self._rows_of(group, i, dense=False)
            if rows is not None:
                yield rows, (self._rows_of(group, i, dense=True) if with_dense else None)

    def _rows_of(self, group: Group, batch: int, *, dense: bool) -> Tensor | None:
        """Return X of one batch, with the chain's output taken from the hidden tensors."""

        def stub(*args: Any, **kwargs: Any) -> Any:
            if self._hidden is None:
                raise Stop
            stream = self._hidden.dense if dense else self._hidden.now
            return output_of(self._chain, (self._hidden.now if stream is None else stream)[batch])

        with stubbed(self._model, dict.fromkeys(self._chain.blocks, stub)):
            return rows_of(
                self._model,
                group.modules[0],
                group,
                lambda: call_model(self._model, self._batches[batch], self._device),
            )


class WholeModel:
    """A model without a chain: every group runs it from the start up to that group.

    The uncompressed model is the same module run with a copy of the first weights: a traced graph
    cannot be copied as a whole.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        groups: Sequence[Group],
        device: torch.device,
        room: Room,
        *,
        keep_dense: bool,
    ) -> None:
        self.groups = groups
        self._model, self._batches, self._device = model, batches, device
        self._solved = {g: [model.get_submodule(m) for m in g.modules] for g in groups}
        if has_ties(model, [module for own in self._solved.values() for module in own]):
            room = Room()
        self._replays = {dense: [Replay(room) for _ in batches] for dense in (False, True)}
        self._dense: dict[str, Tensor] = {}
        if keep_dense:
            copies = {id(p): p.detach().clone() for p in model.parameters()}
            self._dense = {name: copies[id(p)] for name, p in own_parameters(model)}

    def __enter__(self) -> Self:
        self._model.to(self._device)
        moved = {id(weight): weight.to(self._device) for weight in self._dense.values()}
        self._dense = {name: moved[id(weight)] for name, weight in self._dense.items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._model.to("cpu")
        self._replays = {}

    def inputs(
        self, group: Group, need: frozenset[Statistic]
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield X of every batch; X of the dense model only where ``need`` asks for it."""
        path = group.modules[0]
        later = self.groups[self.groups.index(group) :]
        unsolved = [module for g in later for module in self._solved[g]]
        for i in range(len(self._batches)):
            rows = rows_of(self._model, path, group, partial(self._run, i, unsolved))
            twin = None
            if rows is not None and Statistic.DENSE_TARGET in need:
                run = partial(self._run, i, (), dense=True)
                twin = rows_of(self._model, path, group, run)
            if rows is not None:
                yield rows, twin
            del rows, twin  # before the next batch runs

    def _run(self, batch: int, unsolved: Sequence[nn.Module], *, dense: bool = False) -> object:
        weights = self._dense if dense else None
        with self._replays[dense][batch].running(self._model, unsolved):
            return call_model(self._model, self._batches[batch], self._device, weights=weights)
