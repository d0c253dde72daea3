"""The layers of one compression: solved, put in place, packed, and kept in memory or a journal."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.calibrate import Statistics
from edgesparse.calibrate.inputs import as_matrix, has_inputs
from edgesparse.calibrate.residence import Residence, Streamed
from edgesparse.calibrate.team import Team
from edgesparse.calibrate.visit import module_of
from edgesparse.codes import Codes
from edgesparse.dropping import without_zeros
from edgesparse.errors import CalibrationError
from edgesparse.journal import Journal
from edgesparse.model import CapturedModel
from edgesparse.packed import FORMATS, PackedTensor
from edgesparse.pieces import Power, joined, put_in_place, solve_by_rows
from edgesparse.planner import TensorPlan
from edgesparse.shares import Share, Stacked, row_unit, share_out

_CHECKED_AT_ONCE = 1 << 22  # weights: a check is not to hold more than the layers do


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One tensor done.

    Attributes:
        done: Tensors done, this one included.
        total: Tensors to do.
        name: The tensor.
        error: Its measured relative output error.
        seconds: Since the start.
    """

    done: int
    total: int
    name: str
    error: float
    seconds: float


@dataclass
class LayerRun:
    """The state of one ``compress``: what is done so far.

    Attributes:
        captured: The source.
        model: The private copy, or its skeleton.
        todo: What to do with each tensor.
        team: The processes that share the work.
        progress: Called after every tensor.
        started: When the run began, on the monotonic clock.
        journal: Where finished tensors are durable; None keeps them in memory.
        packs_beside: Pack and write in a thread while the next layers are solved. What is durable
            is then one group behind, and the codes of one group more are in memory.
        errors: Measured error of every tensor done, in the order they were done.
        dropped: How many codes of value 0 were left out of the mask of each tensor.
        unreached: Tensors solved here although no calibration sample reached them, a rare expert's
            say: with all columns alike, Hessian methods choose by magnitude and round to nearest.
    """

    captured: CapturedModel
    model: nn.Module
    todo: Mapping[str, TensorPlan]
    team: Team
    progress: Callable[[Progress], None] | None
    started: float
    journal: Journal | None = None
    packs_beside: bool = False
    errors: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    _packed: dict[str, PackedTensor] = field(default_factory=dict)
    _pending: Future[Mapping[str, Any] | None] | None = None

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._load = [0] * self.team.size
        self._by_module = {module_of(self.model, p.tensor): n for n, p in self.todo.items()}

    def residence(self, *, streamed: bool) -> Residence:
        """Return where the model's weights are; streamed ones are read when a part runs."""
        if not streamed:
            return Residence()
        return Streamed(self.model, self.captured.tensors, self._read)

    def require_finite(self) -> None:
        """Refuse weights that are NaN or infinite, one tensor at a time.

        Raises:
            CalibrationError: Some are; the message names the tensor.
        """
        for name in self.todo:
            value: Tensor = self.model.get_parameter(name)
            if value.is_meta:
                value = self.captured.weights()[name]
            parts = torch.split(value.reshape(-1), _CHECKED_AT_ONCE)
            wrong = sum(int((~torch.isfinite(part)).sum()) for part in parts)
            if wrong:
                raise CalibrationError(
                    f"{name}: {wrong} weights are NaN or infinite; the source model is damaged"
                )

    def is_finished(self, modules: tuple[str, ...]) -> bool:
        """Whether an earlier run solved all tensors of modules with common inputs.

        Not some of them: where a module runs twice, what it computes changes its own inputs.
        """
        finished = {} if self.journal is None else self.journal.finished
        return all(self._by_module[module] in finished for module in modules)

    def solve(self, modules: tuple[str, ...], statistics: Statistics) -> None:
        """Solve the tensors of modules with common inputs and put the decoded values in place."""
        names = [self._by_module[module] for module in modules]
        if self.is_finished(modules):
            for name in names:
                self._restore(name)
            return
        if not statistics.samples and has_inputs(self.model.get_submodule(modules[0])):
            self.unreached += names
        shares = self._shares(names)
        solved = {
            (name, share): self._solve_rows(name, share.rows, statistics)
            for name in names
            for share in shares[name]
            if share.rank == self.team.rank
        }
        codes, errors = self._exchange(shares, solved)
        self.settle()
        own = {name: errors[name] for name in codes}
        self._pending = self._thread.submit(self._keep, codes, own)
        if not self.packs_beside:
            self.settle()
        for name in names:
            self._done(name, errors[name])

    def settle(self) -> None:
        """Wait until what was solved is packed and, with a journal, durable.

        Raises:
            FormatError: It cannot be written.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        line = pending.result()
        if self.journal is not None:
            self.journal.commit([line for line in self.team.gather(line) if line is not None])
            self.dropped |= {name: f.dropped for name, f in self.journal.finished.items()}

    def close(self) -> None:
        """End the thread, and let other processes have the journal."""
        self._thread.shutdown()
        if self.journal is not None:
            self.journal.close()

    def packed(self, name: str) -> PackedTensor:
        """Return one tensor that is done."""
        if self.journal is None:
            return self._packed[name]
        return self.journal.packed(self.todo[name].tensor)

    def _shares(self, names: Sequence[str]) -> dict[str, tuple[Share, ...]]:
        """Return who solves which rows of matrices with common inputs."""
        group = {name: self._stacked(name) for name in names}
        shares = share_out(group, self.team.size, self._load)
        for share in itertools.chain.from_iterable(shares.values()):
            self._load[share.rank] += share.end - share.begin
        return shares

    def _stacked(self, name: str) -> Stacked:
        planned, parameter = self.todo[name], self.model.get_parameter(name).data
        assert planned.rule is not None
        assert planned.spec is not None
        weight = as_matrix(parameter)
        unit = row_unit(planned.rule, planned.spec, weight.shape[1])
        is_in_place = weight.data_ptr() == parameter.data_ptr()
        return Stacked(rows=weight.shape[0], unit=unit if is_in_place else None)

    def _solve_rows(self, name: str, rows: slice, statistics: Statistics) -> tuple[Codes, Power]:
        """Solve some rows of a tensor and put them in place."""
        planned, parameter = self.todo[name], self.model.get_parameter(name)
        assert planned.rule is not None
        assert planned.spec is not None
        weight = as_matrix(parameter.data)
        codes = solve_by_rows(name, weight[rows], statistics, planned.rule, planned.spec)
        power = put_in_place(codes, weight[rows], statistics)
        if weight.data_ptr() != parameter.data_ptr():  # its storage was not in this order
            parameter.data.copy_(weight.reshape(parameter.shape))
        return codes, power

    def _exchange(
        self,
        shares: Mapping[str, tuple[Share, ...]],
        solved: Mapping[tuple[str, Share], tuple[Codes, Power]],
    ) -> tuple[dict[str, Codes], dict[str, float]]:
        """Give every process all new weights and errors, and the codes of a tensor to one of them.

        Returns:
            The codes that this process is to pack, and the errors of all.
        """
        for name, every in shares.items():
            for share in every:
                self.team.copy_from(share.rank, self.model.get_parameter(name).data[share.rows])
        owners = {n: max(every, key=lambda s: s.end - s.begin).rank for n, every in shares.items()}
        sent = {
            place: codes
            for place, (codes, _) in solved.items()
            if owners[place[0]] != self.team.rank
        }
        powers, parts = dict.fromkeys(shares, Power()), {p: c for p, (c, _) in solved.items()}
        for theirs, others in self.team.gather(({p: e for p, (_, e) in solved.items()}, sent)):
            parts |= others
            for (name, _), power in theirs.items():
                powers[name] += power
        codes = {
            name: self._whole(name, [parts[name, share] for share in shares[name]])
            for name, owner in owners.items()
            if owner == self.team.rank
        }
        return codes, {name: power.relative for name, power in powers.items()}

    def _whole(self, name: str, parts: Sequence[Codes]) -> Codes:
        """Return a tensor's codes in its own shape, from those of its rows."""
        planned, codes = self.todo[name], joined(parts)
        assert planned.spec is not None
        shape = planned.tensor.shape
        if codes.shape != shape:
            codes = replace(
                codes, values=codes.values.reshape(shape), keep_mask=codes.keep_mask.reshape(shape)
            )
        codes, self.dropped[name] = without_zeros(codes, planned.spec)
        return codes

    def _keep(
        self, codes: Mapping[str, Codes], errors: Mapping[str, float]
    ) -> Mapping[str, Any] | None:
        """Pack, in memory or as a durable part; return the journal's line."""
        packed = {}
        for name, value in codes.items():
            planned = self.todo[name]
            assert planned.rule is not None
            assert planned.spec is not None
            pack = FORMATS.get(planned.spec.name).pack
            packed[name] = pack(value, pattern=planned.rule.pattern)
        if self.journal is not None:
            return self.journal.write_part(packed, errors, self.dropped) if packed else None
        self._packed |= packed
        return None

    def _restore(self, name: str) -> None:
        """Put a tensor of an earlier run in place."""
        assert self.journal is not None
        parameter = self.model.get_parameter(name)
        decoded = torch.from_numpy(self.packed(name).decode())
        parameter.data.copy_(decoded.reshape(parameter.shape))
        self.dropped[name] = self.journal.finished[name].dropped
        self._done(name, self.journal.finished[name].error)

    def _done(self, name: str, error: float) -> None:
        self.errors[name] = error
        if self.progress is not None:
            self.progress(
                Progress(
                    done=len(self.errors),
                    total=len(self.todo),
                    name=name,
                    error=error,
                    seconds=time.monotonic() - self.started,
                )
            )

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors as they are now: decoded if done, else as in the source, in float32."""
        source = self.captured.weights()  # opened anew: its mapped pages leave memory with it
        for name in names:
            if name in self.errors:
                value = torch.from_numpy(self.packed(name).decode())
            else:
                value = source[name]
            yield name, value.float() if value.is_floating_point() else value
