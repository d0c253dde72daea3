"""Memory planning that knows which outputs of a graph are buffers written in place.

A cache that is written in place is returned by the graph too, and ExecuTorch's planner would find
room for what is returned beside the cache itself: an arena as large as the cache, never used, and
zeroed by the runtime, so it is resident.
"""

from __future__ import annotations

from typing import Any

from executorch.exir.passes import MemoryPlanningPass
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree


class InPlacePlanning(MemoryPlanningPass):  # type: ignore[misc]
    """ExecuTorch's planning, with buffers shared by the methods and returned as themselves."""

    def __init__(self) -> None:
        super().__init__(share_mutable_buffers=True)

    def run(self, graph_module: GraphModule, graph_signature: Any = None) -> Any:
        """Plan one method."""
        output = graph_module.graph.output_node()
        output.meta["spec"] = pytree.tree_map_only(
            Node, lambda node: written(node).meta.get("spec"), output.args[0]
        )
        return super().run(graph_module, graph_signature)


def written(node: Node) -> Node:
    """Return what ``node`` is when all it does is to write into it in place; else the node."""
    while is_in_place(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def is_in_place(node: Node) -> bool:
    """Whether an operator writes into its first argument and returns it."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not node.args:
        return False
    return bool(schema.name.endswith("_") and not schema.name.endswith("__"))
