"""Plans: what to do with every tensor, and what it will cost, before any weight is touched."""

from edgesparse.planner.types import Plan, TensorPlan

__all__ = ["Plan", "TensorPlan"]
