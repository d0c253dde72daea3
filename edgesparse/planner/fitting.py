"""Fit a model into a budget: candidates of every tensor, their costs, and the best choice.

Rules are constraints: only the fields they leave open vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from edgesparse.budget import Budget
from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel, TensorInfo
from edgesparse.planner.allocate import Limit, allocate
from edgesparse.planner.candidates import possible, worthwhile
from edgesparse.planner.choose import readable_by
from edgesparse.planner.download import download_nbytes
from edgesparse.planner.peak import fixed_terms, held_nbytes
from edgesparse.planner.predict import FilePrediction
from edgesparse.planner.rates import Sensitivity
from edgesparse.planner.refusal import Smallest, contradiction, refusal
from edgesparse.planner.types import TensorPlan
from edgesparse.recipe import ADJUSTABLE, Rule

# What the expected size of a random mask may miss by, kept free where the planner removes weights.
_MASK_SLACK = 0.003
# A header grows or shrinks a little with the choice; it is settled in so many rounds.
_ROUNDS = 8
_HEADER_NBYTES = 4096  # of a file that is sent

Ruled = Sequence[tuple[TensorInfo, Rule | None]]


@dataclass(frozen=True)
class Fit:
    """The problem: a model, what may be done with each tensor, and the limits.

    Attributes:
        captured: The model.
        ruled: Every tensor with its rule.
        budget: The limits, at least one.
        target: Whose file and runtime the limits are about.
        predict_file: Predicts the bytes ``budget.file`` limits.
        sensitivity: See ``candidates.worthwhile``.
    """

    captured: CapturedModel
    ruled: Ruled
    budget: Budget
    target: str | None
    predict_file: FilePrediction
    sensitivity: Sensitivity

    def solve(self) -> list[TensorPlan]:
        """Return the entries of least predicted loss that keep the budget.

        Raises:
            BudgetExceeded: There are none.
            UsageError: ``peak`` or ``latency`` is limited but cannot be predicted.
        """
        options, limits = self.refuse()
        best = [worthwhile(of, self.sensitivity) for of in options]
        kept = [np.array(list(of), np.int64) for of in best]
        losses = [np.array(list(of.values())) for of in best]
        narrowed = [
            replace(limit, costs=[of[i] for of, i in zip(limit.costs, kept, strict=True)])
            for limit in limits
        ]
        entries = [[of[i] for i in at] for of, at in zip(options, kept, strict=True)]
        found = self._settle(entries, losses, narrowed)
        if found is not None:
            return found
        if len(limits) > 1:
            raise contradiction(narrowed)
        raise refusal(limits[0], self._smallest(limits[0], options), target=self.target)

    def refuse(self) -> tuple[list[list[TensorPlan]], list[Limit]]:
        """Return all candidates and the limits, if each limit can be kept on its own.

        From sizes alone, before losses: those take most of a second.

        Raises:
            BudgetExceeded: One cannot.
            UsageError: As for ``solve``.
        """
        options = self._options()
        limits = self._limits(options)
        for limit in limits:
            if limit.smallest_nbytes > limit.nbytes:
                raise refusal(limit, self._smallest(limit, options), target=self.target)
        return options, limits

    def _settle(
        self,
        options: Sequence[Sequence[TensorPlan]],
        losses: Sequence[NDArray[np.float64]],
        limits: list[Limit],
    ) -> list[TensorPlan] | None:
        """Solve until the header of the choice is the header it was solved with.

        A header grows with the number of buffers, so the first, of the smallest choice, is the
        longest: each further round may spend what it leaves.
        """
        best = None
        for _ in range(_ROUNDS):
            choice = allocate(losses, *limits)
            if choice is None:
                break
            entries = [of[i] for of, i in zip(options, choice, strict=True)]
            real = self._real_fixed_nbytes(limits[0], entries)
            fits = replace(limits[0], fixed_nbytes=real).holds(choice)
            if fits:
                best = entries
            if real == limits[0].fixed_nbytes or (best is not None and not fits):
                break
            limits[0] = replace(limits[0], fixed_nbytes=real)
        return best

    def _options(self) -> list[list[TensorPlan]]:
        """Return everything the rules allow for each tensor, with its bytes."""
        formats, timed = readable_by(self.target), self.budget.latency is not None
        return [list(possible(tensor, rule, formats, by_row=timed)) for tensor, rule in self.ruled]

    def _limits(self, options: Sequence[Sequence[TensorPlan]]) -> list[Limit]:
        """Return the limits that are set, the file first: it is the one solved exactly."""
        limits = []
        if self.budget.file is not None:
            limit = Limit("file", self.budget.file, _costs(options, self._file_cost), 0)
            cheapest = [int(of.argmin()) for of in limit.costs]
            entries = [of[i] for of, i in zip(options, cheapest, strict=True)]
            fixed = self._real_fixed_nbytes(limit, entries)
            limits.append(replace(limit, fixed_nbytes=fixed))
        if self.budget.download is not None:
            costs = _costs(options, download_nbytes)
            limits.append(Limit("download", self.budget.download, costs, _HEADER_NBYTES))
        if self.budget.peak is not None:
            limits.append(self._peak_limit(options, self.budget.peak))
        if self.budget.latency is not None:
            limits.append(Limit("latency", self.budget.latency, self._latency_costs(options), 0))
        return limits

    def _latency_costs(self, options: Sequence[Sequence[TensorPlan]]) -> list[NDArray[np.int64]]:
        from edgesparse.planner.speed import products_ns

        entries = list(chain.from_iterable(options))
        # All at once: a runtime is started only once to time them.
        flat = np.array(products_ns(self.captured, entries, self.target), np.int64)
        return np.split(flat, np.cumsum([len(of) for of in options])[:-1])

    def _peak_limit(self, options: Sequence[Sequence[TensorPlan]], nbytes: int) -> Limit:
        terms = fixed_terms(self.captured, self.target, self.budget.context)
        if terms is None:
            raise UsageError(
                f"{self.captured.name}: its peak memory cannot be predicted, because its forward "
                "pass cannot be traced without weights or nothing is known of the target's memory "
                f"({self.target}); leave peak out of the budget"
            )
        costs = _costs(options, lambda entry: held_nbytes(entry, self.target))
        return Limit("peak", nbytes, costs, sum(term.nbytes for term in terms))

    def _part_nbytes(self, entry: TensorPlan) -> int:
        """Return what one entry adds to the file: its bytes, and its lines in a header."""
        return self.predict_file([entry]) - self._empty_nbytes

    @cached_property
    def _empty_nbytes(self) -> int:
        """Bytes of a file without tensors."""
        return self.predict_file([])

    def _file_cost(self, entry: TensorPlan) -> int:
        """Return what one entry counts: a mask nobody has seen yet may take a little more."""
        nbytes, rule = self._part_nbytes(entry), entry.rule
        random = rule is not None and not rule.pattern.is_dense and rule.pattern.n_of_m is None
        if rule is not None and random and "sparsity" in rule.adjustable:
            nbytes += round(_MASK_SLACK * nbytes)
        return nbytes

    def _real_fixed_nbytes(self, limit: Limit, entries: Sequence[TensorPlan]) -> int:
        """Return what the whole takes beyond the sum of its parts, which alignment may lessen."""
        if limit.name != "file":
            return limit.fixed_nbytes
        return self.predict_file(entries) - sum(map(self._part_nbytes, entries))

    def _smallest(self, limit: Limit, options: Sequence[Sequence[TensorPlan]]) -> Smallest:
        """Return the smallest plan there is, and the size without the recipe's constraints."""
        best = [int(of.argmin()) for of in limit.costs]
        entries = [of[i] for of, i in zip(options, best, strict=True)]
        nbytes = [int(of[i]) for of, i in zip(limit.costs, best, strict=True)]
        free = None
        if any(rule is not None and not rule.adjustable >= ADJUSTABLE for _, rule in self.ruled):
            opened = [
                (t, rule and replace(rule, adjustable=rule.adjustable | ADJUSTABLE))
                for t, rule in self.ruled
            ]
            problem = replace(self, ruled=opened)
            limits = problem._limits(problem._options())
            free = next(of for of in limits if of.name == limit.name).smallest_nbytes
        return Smallest(entries=entries, nbytes=nbytes, without_constraints=free)


def _costs(
    options: Sequence[Sequence[TensorPlan]], cost: Callable[[TensorPlan], int]
) -> list[NDArray[np.int64]]:
    return [np.array([cost(entry) for entry in of], np.int64) for of in options]
