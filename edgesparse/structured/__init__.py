"""Structured pruning: whole neurons and channels go, and really smaller dense tensors remain."""

from edgesparse.structured.groups import Group, Member, find_groups
from edgesparse.structured.pruning import prune_structured
from edgesparse.structured.surgery import cut

__all__ = ["Group", "Member", "cut", "find_groups", "prune_structured"]
