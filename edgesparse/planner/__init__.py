"""Plans: what to do with every tensor, and what it will cost, before any weight is touched.

What runs the model (``share_sparsity``) is imported on first use: planning by shapes needs no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgesparse.planner.default import (
    default_recipe,
    leaves_open,
    with_patterns,
    without_sparsity,
)
from edgesparse.planner.front import pareto_front
from edgesparse.planner.planning import plan
from edgesparse.planner.rates import Rates, Sensitivity
from edgesparse.planner.types import MemoryTerm, Plan, TensorPlan

if TYPE_CHECKING:
    from edgesparse.planner.sharing import share_sparsity

__all__ = [
    "MemoryTerm",
    "Plan",
    "Rates",
    "Sensitivity",
    "TensorPlan",
    "default_recipe",
    "leaves_open",
    "pareto_front",
    "plan",
    "share_sparsity",
    "with_patterns",
    "without_sparsity",
]


def __getattr__(name: str) -> Any:
    if name != "share_sparsity":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgesparse.planner.sharing import share_sparsity

    return share_sparsity
