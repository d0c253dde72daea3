"""What is read off a node of an exported graph."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node


def operator_of(node: Node) -> str:
    """Return the name of what a node calls, in place or not."""
    packet = getattr(node.target, "_overloadpacket", node.target)
    name = str(getattr(packet, "__name__", packet))
    return name.rstrip("_") if not name.startswith("__") else name


def shape_of(value: object) -> tuple[int, ...]:
    """Return the shape of a node's value, () when it is no tensor."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    return tuple(int(size) for size in found.shape) if isinstance(found, torch.Tensor) else ()


def arguments_of(node: Node) -> Any:
    """Return the positional arguments; their types are the operator's own."""
    return node.args


def padded(node: Node, count: int) -> Any:
    """Return ``count`` arguments, None for those left out."""
    return (*node.args, *(None,) * count)[:count]
