"""Structured pruning: whole neurons and channels go, and really smaller dense tensors remain."""

from edgesparse.structured.groups import Group, Member, find_groups
from edgesparse.structured.pruning import prune_structured
from edgesparse.structured.surgery import cut
from edgesparse.structured.writing import write_model

__all__ = ["Group", "Member", "cut", "find_groups", "prune_structured", "write_model"]
