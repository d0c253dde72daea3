"""What calibration tells a solver about the inputs of one weight.

For inputs ``X`` of shape (samples, K), one row per token, patch or example:

    input_norm   sqrt(sum over samples of X²)     [K]
    hessian      XᵀX                              [K, K]
    dense_cross  XᵀX°, X° the same inputs as the uncompressed model sees them    [K, K]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgesparse.calibrate.factor import Factor, factorize
from edgesparse.calibrate.team import Team

T = TypeVar("T")


class Statistic(StrEnum):
    """What a method may ask for in ``needs``."""

    INPUT_NORM = "input_norm"
    HESSIAN = "hessian"
    DENSE_TARGET = "dense_target"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Sums over the calibration inputs of one weight; None where nothing was gathered.

    A weight that has no inputs to speak of (an embedding, a layer that no calibration sample
    reaches) has ``count`` 0 and counts every column alike.

    Attributes:
        columns: K, columns of the weight seen as a matrix.
        samples: Input rows summed over.
        square_sum: float32 [K], sum of squares of every column.
        hessian: float32 [K, K], ``XᵀX``.
        dense_cross: float32 [K, K], ``XᵀX°``.
    """

    columns: int
    samples: int = 0
    square_sum: Tensor | None = None
    hessian: Tensor | None = None
    dense_cross: Tensor | None = None
    _found: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returned the first time: weights with common inputs share it.

        Args:
            key: Names it, with every option it depends on.
            compute: Depends on nothing but these statistics and the options in ``key``.
        """
        if key not in self._found:
            self._found[key] = compute()
        found: T = self._found[key]
        return found

    def factor(self, damping: float, device: torch.device | None = None) -> Factor:
        """Return the factor of the inverse of ``XᵀX``, damped; see ``factorize``."""
        return self.once(
            ("factor", damping), lambda: factorize(self.second_moment(device), damping)
        )

    def input_norm(self, device: torch.device | None = None) -> Tensor:
        """Return the Euclidean norm of each column of the inputs, float32 [K]; ones without any."""
        if self.hessian is not None and self.samples:
            return self.hessian.diagonal().sqrt()
        if self.square_sum is not None and self.samples:
            return self.square_sum.sqrt()
        return torch.ones(self.columns, device=device)

    def second_moment(self, device: torch.device | None = None) -> Tensor:
        """Return ``XᵀX`` as float32 [K, K]; the identity where no inputs were seen."""
        if self.hessian is not None and self.samples:
            return self.hessian
        return torch.eye(self.columns, device=device)

    def retargeted(self, weight: Tensor, *, damping: float = 0.01) -> Tensor:
        """Return the weight whose outputs here come closest to the dense model's.

        Layers before this one are compressed already, so its inputs ``X`` differ from the dense
        model's ``X°``. The least ``|X Vᵀ - X° Wᵀ|² + λ|V - W|²`` is at
        ``Vᵀ = (XᵀX + λI)⁻¹ (XᵀX° + λI) Wᵀ``; the weight itself where no dense inputs were seen.

        Args:
            weight: W, float32 [N, K].
            damping: λ relative to the mean diagonal of ``XᵀX``.
        """
        if self.dense_cross is None or self.hessian is None or not self.samples:
            return weight
        wanted = weight @ (self.dense_cross - self.hessian).T
        return weight + self.factor(damping).solve(wanted)

    def output_error(self, weight: Tensor, changed: Tensor) -> float:
        """Return ``|X(W' - W)ᵀ|² / |XWᵀ|²``, 0 for a weight whose outputs are all zero.

        Args:
            weight: W, float32 [N, K].
            changed: W', float32 [N, K].
        """
        power = self.output_power(weight)
        return self.output_power(changed - weight) / power if power > 0 else 0.0

    def output_power(self, weight: Tensor) -> float:
        """Return ``|XWᵀ|²`` of W, float32 [N, K]: a sum over rows, so it may be taken by parts."""
        return _quadratic(weight, self.second_moment(weight.device))


def _quadratic(weight: Tensor, H: Tensor) -> float:
    """Return trace(W H Wᵀ); the sum in float64, terms of a million rows cancel in float32."""
    return float(((weight @ H) * weight).sum(dtype=torch.float64).clamp(min=0))


class Accumulator:
    """Adds up the statistics in ``needs`` over batches of inputs.

    Products are of one batch, in float32; their sums over batches are in float64 and rounded once.
    So it does not show in which order batches came, or in how many processes: sums in float32 that
    differ in their last bit lead SparseGPT to other masks, half a percent of perplexity apart.
    """

    def __init__(self, columns: int, needs: frozenset[Statistic], device: torch.device) -> None:
        self._columns, self._samples = columns, 0
        square = (columns, columns)
        full = Statistic.HESSIAN in needs or Statistic.DENSE_TARGET in needs
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self._norm = None if full else zeros(columns)
        self._hessian = zeros(square) if full else None
        self._cross = zeros(square) if Statistic.DENSE_TARGET in needs else None
        self._is_paired = True

    def add(self, inputs: Tensor, dense_inputs: Tensor | None = None) -> None:
        """Add ``inputs`` of shape (samples, K), and the dense model's inputs of the same shape."""
        self._samples += len(inputs)
        inputs = inputs.float()
        if self._hessian is not None:
            for rows in _stripes(self._columns):
                self._hessian[rows, rows.start :] += inputs[:, rows].T @ inputs[:, rows.start :]
        if self._norm is not None:
            self._norm += inputs.square().sum(0)
        if dense_inputs is not None and dense_inputs.shape != inputs.shape:
            self._is_paired = False  # a routed layer: the dense model sent it other samples
        elif self._cross is not None and dense_inputs is not None:
            dense_inputs = dense_inputs.float()
            for rows in _stripes(self._columns):
                self._cross[rows] += inputs[:, rows].T @ dense_inputs

    def result(self, team: Team | None = None) -> Statistics:
        """Return the sums, over all processes of a ``team``."""
        samples, unpaired = torch.tensor(self._samples), torch.tensor(int(not self._is_paired))
        if team is not None:
            team.add_up(samples, unpaired, self._norm, self._hessian, self._cross)
        cross, self._cross = None if unpaired else _rounded(self._cross), None
        norm, self._norm = _rounded(self._norm), None  # one at a time in both types
        hessian, self._hessian = _rounded(self._hessian), None
        if hessian is not None:
            hessian = hessian.triu_().add_(hessian.triu(1).T)
        return Statistics(
            columns=self._columns,
            samples=int(samples),
            square_sum=norm,
            hessian=hessian,
            dense_cross=cross,
        )


def _rounded(total: Tensor | None) -> Tensor | None:
    return None if total is None else total.float()


def _stripes(columns: int) -> Iterator[slice]:
    """Yield rows of ``XᵀX`` that are added up at once; what lies left of them is known by then."""
    step = max(256, -(-columns // 4))
    for start in range(0, columns, step):
        yield slice(start, min(columns, start + step))
