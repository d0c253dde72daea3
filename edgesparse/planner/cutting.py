"""Whole parts as candidates: is it cheaper to cut neurons, layers or experts out and plan the rest?

A configuration says one size for all layers, so what can be cut is few and global: a share of the
feed-forward neurons or channels, a number of layers, a number of experts of every mixture. Each is
cut for real, the readers refitted, and its loss measured like the rates of single tensors; what is
left is planned under the same budget. Losses are taken to add up:

    loss of the cut (measured)  +  loss of the plan of what is left (predicted)

Cuts of a kind are tried from the least on, until one alone loses more than the best found so far;
on the best then a cut of another kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgesparse.budget import Budget
from edgesparse.calibrate import calibration_batches
from edgesparse.errors import BudgetExceeded, CalibrationError, UsageError
from edgesparse.model import CapturedModel
from edgesparse.planner.planning import plan
from edgesparse.planner.rates import Rates, Sensitivity
from edgesparse.planner.sensitivity import distance, measure_sensitivity, outputs
from edgesparse.planner.types import Plan
from edgesparse.recipe import Recipe
from edgesparse.structured.groups import Group
from edgesparse.structured.pruning import Cuts, prune_structured

SHARES = (0.125, 0.25, 0.375, 0.5)
_MOST = 8  # layers or experts tried one after the other
_NUMBER = re.compile(r"\d+")
_WORDS: dict[str, Callable[[Any], str]] = {
    "channels": lambda share: f"{share:.1%} of the neurons and channels",
    "layers": lambda count: f"{count} layer{'s' * (count > 1)}",
    "experts": lambda count: f"{count} expert{'s' * (count > 1)} of every mixture",
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to keep a budget.

    Attributes:
        captured: The model that is planned: the whole one, or what a cut left of it.
        plan: Its plan.
        cuts: What is cut first; None for nothing.
        cut_loss: Measured loss of the cut.
    """

    captured: CapturedModel
    plan: Plan
    cuts: Cuts | None = None
    cut_loss: float = 0.0

    @property
    def loss(self) -> float:
        """Predicted loss of the whole way."""
        return self.cut_loss + self.plan.loss

    @property
    def words(self) -> str:
        """What is cut, for people."""
        return _words(self.cuts) if self.cuts is not None else "nothing"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What all ways have in common.

    Attributes:
        captured: The whole model.
        recipe: As for ``plan``.
        budget: As for ``plan``, at least one limit.
        target: As for ``plan``.
        settings: The ``options`` of ``plan``.
        calibration: See ``calibrate.calibration_batches``.
        sensitivity: Rates of the whole model.
        windows: Windows a loss is measured on.
        window: Tokens in a window.
        seed: Which windows.
        tried: Called with a cut in words, its loss and that of its whole way (None: over budget).
    """

    captured: CapturedModel
    recipe: Recipe | None
    budget: Budget
    target: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibration: object
    sensitivity: Sensitivity
    windows: int = 4
    window: int = 512
    seed: int = 0
    tried: Callable[[str, float, float | None], None] = lambda words, cut, whole: None


def best_way(search: Search) -> Way:
    """Return the way of least predicted loss, cuts among them.

    Raises:
        BudgetExceeded: None keeps the budget.
        CalibrationError: Unusable calibration data.
    """
    refused: BudgetExceeded | None = None
    best: Way | None = None
    try:
        best = Way(
            captured=search.captured, plan=_plan(search, search.captured, search.sensitivity)
        )
    except BudgetExceeded as error:
        refused = error
    loss_of = _measurer(search)
    known: dict[tuple[int, ...], tuple[Group, ...]] = {}
    for _ in range(2):  # one kind of cut, then another on top
        start = best.cuts if best is not None else None
        better = best
        for ladder in _ladders(search.captured, start):
            better = _climb(search, ladder, better, loss_of, known)
        if better is best:
            break
        best = better
    if best is None:
        assert refused is not None
        first, _, _ = str(refused).rpartition("\n")  # what would help was just tried
        raise BudgetExceeded(f"{first}\n  cutting whole parts was tried and is not enough")
    return best if best.cuts is None else _measured_again(search, best)


def _climb(
    search: Search,
    ladder: Sequence[Cuts],
    best: Way | None,
    loss_of: Callable[[CapturedModel], float],
    known: dict[tuple[int, ...], tuple[Group, ...]],
) -> Way | None:
    """Try cuts of one kind from the least on; return the best way."""
    for cuts in ladder:
        try:
            small = prune_structured(
                search.captured, cuts, calibration=search.calibration, window=search.window,
                seed=search.seed, known=known,
            )  # fmt: skip
        except (UsageError, CalibrationError):  # there are none of these parts, or too few
            return best
        loss = loss_of(small)
        if best is not None and loss >= best.loss:
            search.tried(_words(cuts), loss, None)
            return best
        try:
            made = _plan(search, small, _by_role(small, search.sensitivity))
        except BudgetExceeded:
            search.tried(_words(cuts), loss, None)
            continue
        way = Way(captured=small, plan=made, cuts=cuts, cut_loss=loss)
        search.tried(_words(cuts), loss, way.loss)
        if best is None or way.loss < best.loss:
            best = way
    return best


def _ladders(captured: CapturedModel, start: Cuts | None) -> Iterator[list[Cuts]]:
    """Yield the cuts of every kind that ``start`` has none of, each from the least on."""
    layers = captured.config.get("num_hidden_layers")
    most = layers // 2 if isinstance(layers, int) else 0
    ladders: dict[str, Sequence[Any]] = {
        "channels": SHARES,
        "layers": range(1, min(most, _MOST) + 1),
        "experts": range(1, min(_spare(captured), _MOST) + 1),
    }
    for name, rungs in ladders.items():
        if start is None:
            yield [Cuts(**{name: rung}) for rung in rungs]
        elif not getattr(start, name):
            yield [replace(start, **{name: rung}) for rung in rungs]


def _spare(captured: CapturedModel) -> int:
    """Return how many experts of a mixture a token can do without."""
    used = captured.config.get("num_experts_per_tok")
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((n for name in names if isinstance(n := captured.config.get(name), int)), 0)
    return total - used if isinstance(used, int) else 0


def _plan(search: Search, captured: CapturedModel, sensitivity: Sensitivity) -> Plan:
    return plan(
        captured, search.recipe, budget=search.budget, target=search.target,
        sensitivity=sensitivity, options=search.settings,
    )  # fmt: skip


def _measured_again(search: Search, best: Way) -> Way:
    """Return the way planned with what the cut model itself minds, not the mean of its roles."""
    rates = measure_sensitivity(
        best.captured, search.calibration, windows=search.windows, window=search.window,
        seed=search.seed,
    )  # fmt: skip
    return replace(best, plan=_plan(search, best.captured, rates))


def _by_role(small: CapturedModel, sensitivity: Sensitivity) -> Sensitivity:
    """Return rates for a cut model, whose layers have other numbers: the mean over all layers."""
    roles: dict[str, list[Rates]] = {}
    for name, rates in sensitivity.items():
        roles.setdefault(_NUMBER.sub("*", name), []).append(rates)
    means = {
        role: Rates(
            rounding=sum(r.rounding for r in of) / len(of),
            pruning=sum(r.pruning for r in of) / len(of),
        )
        for role, of in roles.items()
    }
    named = ((t.name, means.get(_NUMBER.sub("*", t.name))) for t in small.tensors)
    return {name: rates for name, rates in named if rates is not None}


def _measurer(search: Search) -> Callable[[CapturedModel], float]:
    """Return what measures the loss of a cut model against the whole one."""
    batches = calibration_batches(
        search.captured, search.calibration, windows=search.windows, window=search.window,
        seed=search.seed,
    )[: search.windows]  # fmt: skip
    whole = outputs(search.captured.loader().float(), batches)
    language_model = search.captured.task == "causal-lm"

    def loss_of(small: CapturedModel) -> float:
        found = outputs(small.loader().float(), batches)
        return distance(whole, found, language_model=language_model)

    return loss_of


def _words(cuts: Cuts) -> str:
    parts = ((said, getattr(cuts, name)) for name, said in _WORDS.items())
    return " and ".join(said(value) for said, value in parts if value)
