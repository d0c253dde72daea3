"""Plans: what to do with every tensor, and what it will cost, before any weight is touched."""

from edgesparse.planner.front import pareto_front
from edgesparse.planner.planning import plan
from edgesparse.planner.rates import Rates, Sensitivity
from edgesparse.planner.types import MemoryTerm, Plan, TensorPlan

__all__ = ["MemoryTerm", "Plan", "Rates", "Sensitivity", "TensorPlan", "pareto_front", "plan"]
