"""A pruning method of one's own, in thirty lines: relative importance (arXiv 2402.19406).

A weight counts by its share of its row and of its column, and by the size of the input it
multiplies. Registered, it is a ``method`` like any other; a package does the same with an entry
point of the group ``edgesparse.pruner``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

import edgesparse as es
from edgesparse.calibrate import Statistic, Statistics
from edgesparse.prune import PRUNERS, Pruned
from edgesparse.prune.masks import keep_highest_by_row

EXAMPLES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class RelativeImportance:
    """Score ``(|w| / Σ row + |w| / Σ column) · |x|^power``."""

    power: float = 0.5
    needs: ClassVar[frozenset[Statistic]] = frozenset({Statistic.INPUT_NORM})
    updates: ClassVar[bool] = False

    def prune(self, weight: Tensor, statistics: Statistics, pattern: es.Pattern) -> Pruned:
        """Prune ``weight``, float32 [N, K]; the weights kept stay as they are."""
        size = weight.abs()
        share = size / size.sum(1, keepdim=True) + size / size.sum(0, keepdim=True)
        keep_mask = keep_highest_by_row(share * statistics.input_norm() ** self.power, pattern)
        return Pruned(weight * keep_mask, keep_mask)


PRUNERS.register("relative-importance", RelativeImportance())

model = es.load(EXAMPLES / "models/classics-4m")
for method in ("magnitude", "wanda", "relative-importance"):
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), method=method, bits=16, name="*.layers.*")
    plan = es.plan(model, es.Recipe((rule,)))
    small = es.compress(model, plan, calibration=EXAMPLES / "data/calibration.txt", windows=8)
    found = es.evaluate(small, text=EXAMPLES / "data/validation.txt", max_windows=4)
    print(f"{method:20} perplexity {found.perplexity:.1f}, dense {found.dense_perplexity:.1f}")
