"""Fit a model into a budget: candidates of every tensor, their costs, and the best choice.

Rules are constraints: only the fields they leave open vary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.budget import Budget
from edgesparse.errors import BudgetExceeded, UsageError
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

if TYPE_CHECKING:
    from edgesparse.planner.products import Products

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
        settings: What the target's export will be given, as far as times depend on it.
    """

    captured: CapturedModel
    ruled: Ruled
    budget: Budget
    target: str | None
    predict_file: FilePrediction
    sensitivity: Sensitivity
    settings: Mapping[str, Any] = field(default_factory=dict)

    def solve(self) -> list[TensorPlan]:
        """Return the entries of least predicted loss that keep the budget.

        Raises:
            BudgetExceeded: There are none.
            UsageError: ``peak`` or ``latency`` is limited but cannot be predicted.
        """
        options, limits = self.refuse()
        while True:
            found = self._best(options, limits)
            apart = self._kept_apart(options, found)
            if not apart:
                return found
            together = self._products.together(options, apart)
            options, limits = _narrowed(options, limits, together)

    def _best(
        self, options: Sequence[Sequence[TensorPlan]], limits: Sequence[Limit]
    ) -> list[TensorPlan]:
        """Return the entries of least predicted loss within the limits, or say why there are none.

        Raises:
            BudgetExceeded: There are none.
        """
        best = [worthwhile(of, self.sensitivity) for of in options]
        losses = [np.array(list(of.values())) for of in best]
        kept = [np.array(list(of), np.int64) for of in best]
        entries, narrowed = _narrowed(options, limits, kept)
        found = self._settle(entries, losses, narrowed)
        if found is not None:
            return found
        if len(limits) > 1:
            raise contradiction(narrowed)
        raise self._refusal(limits[0], options)

    def _kept_apart(
        self, options: Sequence[Sequence[TensorPlan]], found: Sequence[TensorPlan]
    ) -> set[str]:
        """Return the layers whose experts are all computed, where that breaks the limit.

        What one expert costs depends on what is done with the others, which no sum of costs says.
        """
        latency = self.budget.latency
        apart = self._products.apart(options, found) if latency is not None else set()
        return apart if apart and self._products.total_ns(found) > (latency or 0) else set()

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
                raise self._refusal(limit, options)
        return options, limits

    def _refusal(self, limit: Limit, options: Sequence[Sequence[TensorPlan]]) -> BudgetExceeded:
        of_what = f" of the {self.target} file" if self.target and limit.name == "file" else ""
        if limit.name == "latency":
            of_what = f" with products by {self._products.words}, here"
        return refusal(limit, self._smallest(limit, options), of_what=of_what)

    @cached_property
    def _products(self) -> Products:
        from edgesparse.planner.products import Products

        return Products(self.captured, self.target, self.settings)

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
            costs = self._products.candidates_ns(options)
            limits.append(Limit("latency", self.budget.latency, costs, 0))
        return limits

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


def _narrowed(
    options: Sequence[Sequence[TensorPlan]],
    limits: Sequence[Limit],
    kept: Sequence[NDArray[np.int64]],
) -> tuple[list[list[TensorPlan]], list[Limit]]:
    """Return only these candidates of every tensor, by index, and what they cost."""
    entries = [[of[i] for i in at] for of, at in zip(options, kept, strict=True)]
    costs = ([of[at] for of, at in zip(limit.costs, kept, strict=True)] for limit in limits)
    return entries, [replace(limit, costs=of) for limit, of in zip(limits, costs, strict=True)]
