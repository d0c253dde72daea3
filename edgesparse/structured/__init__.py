"""Structured pruning: whole parts go, and an ordinary model with smaller dense tensors remains."""

from edgesparse.structured.groups import Group, Member, Part, find_groups
from edgesparse.structured.healing import heal
from edgesparse.structured.pruning import Cuts, prune_structured
from edgesparse.structured.surgery import cut, zero_removed
from edgesparse.structured.writing import write_model

__all__ = [
    "Cuts",
    "Group",
    "Member",
    "Part",
    "cut",
    "find_groups",
    "heal",
    "prune_structured",
    "write_model",
    "zero_removed",
]
