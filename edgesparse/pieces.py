"""A weight solved, decoded and measured some rows at a time, where no row matters to another.

What comes out is the same to the bit; a matrix of a vocabulary no longer takes ten times its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.calibrate.statistics import Statistics
from edgesparse.codes import SYMMETRIC, Codes, table_count
from edgesparse.packed import FormatSpec
from edgesparse.recipe import Rule
from edgesparse.shares import row_unit
from edgesparse.solve import solve_tensor

AT_ONCE = 1 << 22  # weights: 16 MB in float32, and a dozen times that while they are solved
_MEASURED_COST = 1 << 36  # multiplications: a second or two of one core
_MEASURED_ROWS = 1024
_BY_ROW = ("values", "scales", "keep_mask", "zeros")


@dataclass(frozen=True)
class Power:
    """Sums over rows of a weight: ``|X(W' - W)ᵀ|²`` and ``|XWᵀ|²``."""

    error: float = 0.0
    output: float = 0.0

    def __add__(self, other: Power) -> Power:
        """Return the sums over the rows of both."""
        return Power(self.error + other.error, self.output + other.output)

    @property
    def relative(self) -> float:
        """The relative output error, 0 for a weight whose outputs are all zero."""
        return self.error / self.output if self.output > 0 else 0.0


def solve_by_rows(
    name: str, weight: Tensor, statistics: Statistics, rule: Rule, spec: FormatSpec
) -> Codes:
    """Return what ``solve_tensor`` returns; see there."""
    unit = is_solved_by_rows(rule, spec, weight.shape[1])
    if unit is None or weight.numel() <= AT_ONCE:
        return solve_tensor(name, weight, statistics, rule, spec)
    parts = (
        solve_tensor(name, weight[rows], statistics, rule, spec)
        for rows in _pieces(weight.shape[0], weight.shape[1], unit)
    )
    return _gathered(parts, weight.shape[0])


def _gathered(parts: Iterator[Codes], rows: int) -> Codes:
    """Return the codes of a weight of so many rows, each part dropped before the next is solved.

    Parts that stayed would lie between what was freed around them: the heap of a vocabulary of 98
    million weights then grew by 940 MB, of which 200 MB were codes.
    """
    whole: dict[str, Any] = {}
    filled: Counter[str] = Counter()
    for part in parts:
        for name, value in _arrays(part).items():
            if name not in whole:
                length = rows if name in _BY_ROW else table_count(rows, part.table_rows)
                whole[name] = np.empty((length, *value.shape[1:]), value.dtype)
            whole[name][filled[name] : filled[name] + len(value)] = value
            filled[name] += len(value)
    return replace(part, **whole)


def joined(parts: Sequence[Codes]) -> Codes:
    """Return the codes of one weight from those of its rows, [N, K] in order."""
    if len(parts) == 1:
        return parts[0]
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _arrays(parts[0])
    }
    return replace(parts[0], **whole)


def _arrays(codes: Codes) -> dict[str, NDArray[np.generic]]:
    """Return what codes hold for rows, by name."""
    values = ((field.name, getattr(codes, field.name)) for field in fields(Codes))
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


def put_in_place(codes: Codes, weight: Tensor, statistics: Statistics) -> Power:
    """Overwrite ``weight``, float32 [N, K], by the decoded values; return what was measured.

    The error of a matrix that is large in this sense is that of some rows, evenly spread: measuring
    all of them would take longer than solving them.
    """
    before, after, step = 0.0, 0.0, _measured_step(*weight.shape)
    for rows in _decodable(codes, weight.shape):
        decoded = _decoded(codes, rows, weight.device)
        some = slice(rows.start, rows.stop, step)
        before += statistics.output_power(weight[some])
        after += statistics.output_power(decoded[::step] - weight[some])
        weight[rows] = decoded
    return Power(after, before)


def _decoded(codes: Codes, rows: slice, device: torch.device) -> Tensor:
    """Return some rows decoded, float32; the same numbers wherever they are computed."""
    if device.type == "cpu" or codes.scheme != SYMMETRIC or codes.bits == 16:
        return torch.from_numpy(_rows_of(codes, rows).decode()).to(device)
    return decode_on(codes, rows, device)


def decode_on(codes: Codes, rows: slice, device: torch.device) -> Tensor:
    """Return some rows of symmetric integer codes [N, K], decoded on ``device``, float32."""
    values = torch.from_numpy(codes.values[rows]).to(device).float()
    scales = torch.from_numpy(codes.scales[rows]).to(device).float()
    return values * scales.repeat_interleave(codes.group_size, 1)[:, : values.shape[1]]


def _measured_step(rows: int, columns: int) -> int:
    """Return which every so many rows the error is measured on: all, while that is cheap."""
    return 1 if rows * columns**2 <= _MEASURED_COST else -(-rows // _MEASURED_ROWS)


def is_solved_by_rows(rule: Rule, spec: FormatSpec, columns: int) -> int | None:
    """Return at multiples of how many rows a large matrix is cut to be solved; None: it is not."""
    return row_unit(rule, spec, columns, factorizes=False)


def _decodable(codes: Codes, shape: torch.Size) -> Iterator[slice]:
    """Yield the rows that can be decoded alone; all at once where they share tables."""
    return iter([slice(0, shape[0])]) if codes.table is not None else _pieces(*shape)


def _pieces(rows: int, columns: int, unit: int = 1) -> Iterator[slice]:
    step = unit * max(1, AT_ONCE // max(unit * columns, 1))
    for begin in range(0, rows, step):
        yield slice(begin, min(rows, begin + step))


def _rows_of(codes: Codes, rows: slice) -> Codes:
    """Return some rows of codes [N, K]."""
    if rows == slice(0, len(codes.values)):
        return codes
    cut = {name: getattr(codes, name, None) for name in _BY_ROW}
    return replace(codes, **{n: value[rows] for n, value in cut.items() if value is not None})
