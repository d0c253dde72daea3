"""OWL (Yin et al. 2023, arXiv 2310.05175): blocks with more outliers lose less.

The score of a weight is ``A = |w| · |x|``, as in Wanda; an outlier is one above ``M`` times the
mean of its block. With ``D`` the fraction of outliers, scaled to reach from 0 to ``2 λ`` over the
blocks, a block's sparsity is the planned one minus ``D`` plus the mean of ``D``: at most ``2 λ``
lie between two blocks, and within one all layers move alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgesparse.calibrate import Statistic, Statistics
from edgesparse.calibrate.visit import visit
from edgesparse.calibrate.windows import Batch
from edgesparse.errors import RecipeError
from edgesparse.model import CapturedModel, TensorInfo
from edgesparse.planner.types import TensorPlan


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Options, with the paper's values.

    Attributes:
        factor: M.
        spread: λ.
    """

    factor: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        if not (self.factor > 0 and 0 < self.spread < 0.5):
            raise RecipeError(
                f"owl has factor {self.factor} and spread {self.spread}; expected a factor above "
                "0 and a spread between 0 and 0.5"
            )

    def sparsities(
        self,
        captured: CapturedModel,
        layers: Sequence[TensorPlan],
        batches: Sequence[Batch],
        device: torch.device,
    ) -> Mapping[str, float]:
        """Return the sparsity of each layer by name."""
        blocks = blocks_of(captured, [entry.tensor for entry in layers])
        waiting = {block: set(names) for block, names in blocks.items()}
        block_of = {name: block for block, names in blocks.items() for name in names}
        scores: dict[str, list[Tensor]] = {block: [] for block in blocks}
        fractions: dict[str, float] = {}

        def see(tensor: TensorInfo, weight: Tensor, statistics: Statistics) -> None:
            block = block_of[tensor.name]
            scores[block].append((weight.abs() * statistics.input_norm(weight.device)).flatten())
            waiting[block].discard(tensor.name)
            if not waiting[block]:
                fractions[block] = self.outliers(torch.cat(scores.pop(block)))

        needs = dict.fromkeys(block_of, frozenset({Statistic.INPUT_NORM}))
        visit(captured, needs, batches, see, device=device)
        moved = self.spread_out(fractions)
        return {
            entry.tensor.name: entry.rule.pattern.sparsity - moved[block_of[entry.tensor.name]]
            for entry in layers
            if entry.rule is not None
        }

    def outliers(self, scores: Tensor) -> float:
        """Return the fraction of scores above ``factor`` times their mean."""
        return float((scores > self.factor * scores.mean()).double().mean())

    def spread_out(self, fractions: Mapping[str, float]) -> dict[str, float]:
        """Return the fractions scaled to 0 … 2 λ; all 0 where they do not differ."""
        least, most = min(fractions.values()), max(fractions.values())
        scale = 2 * self.spread / (most - least) if most > least else 0.0
        return {block: scale * (fraction - least) for block, fraction in fractions.items()}


def blocks_of(captured: CapturedModel, tensors: Sequence[TensorInfo]) -> dict[str, list[str]]:
    """Return the tensors of each block by the block's path: a child of the outermost list.

    A tensor outside of every ``ModuleList`` and ``Sequential`` is a block of its own.
    """
    lists = [
        name
        for name, module in captured.skeleton().named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1
    ]
    blocks: dict[str, list[str]] = {}
    for tensor in tensors:
        block = tensor.name
        for name in lists:
            prefix = f"{name}." if name else ""
            if tensor.name.startswith(prefix):
                block = prefix + tensor.name[len(prefix) :].partition(".")[0]
                break
        blocks.setdefault(block, []).append(tensor.name)
    return blocks


OUTLIERS = Outliers()
