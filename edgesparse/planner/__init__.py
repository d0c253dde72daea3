"""Plans: what to do with every tensor, and what it will cost, before any weight is touched."""

from edgesparse.planner.default import default_recipe, leaves_open, without_sparsity
from edgesparse.planner.front import pareto_front
from edgesparse.planner.planning import plan
from edgesparse.planner.rates import Rates, Sensitivity
from edgesparse.planner.sharing import share_sparsity
from edgesparse.planner.types import MemoryTerm, Plan, TensorPlan

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
    "without_sparsity",
]
