"""How long one token's products take: whose they are, and with which experts of a mixture.

A target whose runtime is here is asked for the times (``exporters.Paced``); for all others, and
without a target, the kernels of this package are timed, and a plan says so.

A token is sent to some of the experts of a layer. Our kernels compute those alone. A target does so
where the experts of every stack of the layer (all ``down_proj``, say) can be one operator, which
depends on what is done with all of them together; else every expert meets every token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse.exporters import EXPORTERS, Paced, installed
from edgesparse.model import CapturedModel, TensorInfo, TensorKind
from edgesparse.planner.types import TensorPlan, whose_words

OWN = "edgesparse"
"""Whose products are counted where no target's are: those of this package's kernels."""

Choices = Sequence[Sequence[TensorPlan]]
"""What can be done with each tensor."""


@dataclass(frozen=True)
class Products:
    """The products of one token with the weights of a language model.

    Attributes:
        captured: The model.
        target: Whose runtime multiplies, if it can be timed.
        settings: Options of the target's export.
    """

    captured: CapturedModel
    target: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of(self) -> str:
        """Whose products are counted: the target's name, or ``edgesparse``.

        Raises:
            UnknownName: No such target.
        """
        return self.target if self.target is not None and self._row is not None else OWN

    @property
    def words(self) -> str:
        """The same for people, with the settings."""
        return whose_words(self.of, self.settings)

    def total_ns(self, entries: Sequence[TensorPlan]) -> int:
        """Return the nanoseconds of all products, for what is done with each tensor.

        Raises:
            UsageError: The model is no language model.
            MissingDependency: The target's tools are not installed.
            MissingTool: The target's runtime needs something that cannot be built here.
        """
        whole = self._whole_layers([[entry] for entry in entries])
        return int(self._cost(entries, whole).sum())

    def candidates_ns(self, choices: Choices) -> list[NDArray[np.int64]]:
        """Return the nanoseconds of every candidate, by tensor.

        A layer of experts is taken to be routed if any choice lets it be; ``apart`` tells whether
        one does. Errors are those of ``total_ns``.
        """
        # All at once: a runtime is started only once to time them.
        flat = self._cost(list(chain.from_iterable(choices)), self._whole_layers(choices))
        return np.split(flat, np.cumsum([len(of) for of in choices])[:-1])

    def apart(self, choices: Choices, chosen: Sequence[TensorPlan]) -> set[str]:
        """Return the layers that could be routed, and are not with what is chosen."""
        return self._whole_layers([[entry] for entry in chosen]) - self._whole_layers(choices)

    def together(self, choices: Choices, layers: Collection[str]) -> list[NDArray[np.int64]]:
        """Return which candidates of each tensor let these layers be routed, all of the others.

        Where the experts could be one operator in several ways it is that of the fastest candidate.
        """
        wanted = self._fastest_ways(choices, layers)
        return [
            np.array([i for i, entry in enumerate(of) if self._held_as(entry) in ways])
            if (ways := wanted.get(_stack(of[0].tensor)))
            else np.arange(len(of))
            for of in choices
        ]

    @property
    def _row(self) -> Paced | None:
        row = None if self.target is None else EXPORTERS.get(self.target)
        return row if isinstance(row, Paced) else None

    def _rates(self, entries: Sequence[TensorPlan]) -> Sequence[float]:
        """Return nanoseconds a weight."""
        from edgesparse.planner.speed import own_rate

        if self.target is None or self._row is None:
            return [own_rate(entry) for entry in entries]
        installed(self.target)  # else the error would come from the middle of an import
        return self._row.product_rates(entries, **self.settings)

    def _cost(self, entries: Sequence[TensorPlan], whole: Collection[str]) -> NDArray[np.int64]:
        """Return the nanoseconds of each entry, all experts of the layers ``whole`` computed."""
        if self.captured.task != "causal-lm":
            raise UsageError(
                f"{self.captured.name} is no language model, and the time of other models is not "
                "predicted; leave latency out of the budget"
            )
        costs = np.zeros(len(entries), np.int64)
        multiplied = [i for i, entry in enumerate(entries) if _is_multiplied(entry.tensor)]
        share = _routed_share(self.captured)
        rates = self._rates([entries[i] for i in multiplied])
        for i, rate in zip(multiplied, rates, strict=True):
            tensor = entries[i].tensor
            routed = tensor.kind is TensorKind.EXPERT and _layer(tensor) not in whole
            costs[i] = round(rate * (share if routed else 1.0) * tensor.numel)
        return costs

    def _whole_layers(self, choices: Choices) -> set[str]:
        """Return the layers of experts that no choice lets be routed."""
        return {stack.rpartition(".")[0] for stack, ways in self._ways(choices).items() if not ways}

    def _ways(self, choices: Choices) -> dict[str, set[str]]:
        """Return how the experts of every stack could be one operator."""
        common: dict[str, list[set[str]]] = defaultdict(list)
        for of in choices:
            if of[0].tensor.kind is TensorKind.EXPERT:
                held = {self._held_as(entry) for entry in of}
                common[_stack(of[0].tensor)].append({way for way in held if way is not None})
        return {stack: set.intersection(*ways) for stack, ways in common.items()}

    def _fastest_ways(self, choices: Choices, layers: Collection[str]) -> dict[str, set[str]]:
        """Return for every stack of these layers the operator of the fastest candidate."""
        common, costs = self._ways(choices), self.candidates_ns(choices)
        fastest: dict[str, set[str]] = {}
        for of, cost in zip(choices, costs, strict=True):
            stack = _stack(of[0].tensor)
            if stack in common and stack.rpartition(".")[0] in layers:
                held = (self._held_as(of[i]) for i in cost.argsort(kind="stable"))
                way = next(way for way in held if way in common[stack])
                fastest.setdefault(stack, {str(way)})
        return fastest

    def _held_as(self, entry: TensorPlan) -> str | None:
        return OWN if self._row is None else self._row.routed_as(entry, **self.settings)


def _is_multiplied(tensor: TensorInfo) -> bool:
    tied = tensor.kind is TensorKind.EMBEDDING and bool(tensor.aliases)
    return tied or tensor.kind in (TensorKind.LINEAR, TensorKind.EXPERT)


def _stack(tensor: TensorInfo) -> str:
    """Return the stack of an expert's matrix: ``….experts.up_proj`` of ``….up_proj.1.weight``."""
    return tensor.name.rsplit(".", 2)[0]


def _layer(tensor: TensorInfo) -> str:
    return _stack(tensor).rpartition(".")[0]


def _routed_share(captured: CapturedModel) -> float:
    """Return the part of the experts that a token is sent to."""
    used = captured.config.get("num_experts_per_tok")
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((n for name in names if isinstance(n := captured.config.get(name), int)), 0)
    return used / total if isinstance(used, int) and total else 1.0
