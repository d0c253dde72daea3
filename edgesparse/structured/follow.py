"""Follow labelled axes through an exported graph, operation by operation.

Every axis of every parameter has labels of its own. An operation that treats positions alike joins
the axes that meet in it and hands them on; a product joins the axis it sums over. Whatever is not
known to do so closes what it is given: the operators known are the tables of ``products.py`` and
``moves.py``. ``groups.py`` reads the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram
from torch.fx import Node

from edgesparse.structured.labels import Axis, Labels
from edgesparse.structured.moves import MOVES
from edgesparse.structured.nodes import operator_of, shape_of
from edgesparse.structured.products import PRODUCTS
from edgesparse.structured.reshaping import Axes


class Follower:
    """One pass over a program whose operators are those of the module, not decomposed.

    Attributes:
        labels: What belongs together.
        axes: Labels of every axis of every parameter and buffer that was met, by its name.
        reads: (name, axis) of every axis that a product sums over.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.labels = Labels()
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.reads: set[tuple[str, int]] = set()
        self._names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._values: dict[Node, Axes] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in self._names:
                self._tensor(node)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                self.close(*node.all_input_nodes)

    def _tensor(self, node: Node) -> None:
        """Give a parameter or buffer its labels; under a second name it keeps those it has."""
        name = self._names[node.name]
        if name not in self.axes:
            self.axes[name] = tuple(self.labels.new(size) for size in shape_of(node))
        self._values[node] = self.axes[name]

    def _call(self, node: Node) -> Axes:
        name = operator_of(node)
        rank = len(shape_of(node))
        handler = PRODUCTS.get(name) or MOVES.get(name)
        if handler is not None:
            return handler(self, node)
        if not name.startswith(("_assert", "sym_")):
            self.close(*node.all_input_nodes)
        return (None,) * rank

    def axes_of(self, value: object) -> Axes:
        """Return the labels of a value's axes, none for what is no node."""
        if not isinstance(value, Node):
            return ()
        return self._values.get(value, (None,) * len(shape_of(value)))

    def close(self, *nodes: Node) -> None:
        """Say of values that nothing along their axes can be cut."""
        for node in nodes:
            for axis in self.axes_of(node):
                self.close_axis(axis)

    def close_axis(self, axis: Axis | None) -> None:
        """Say that nothing along an axis can be cut."""
        if axis is not None and axis.size:
            self.labels.mark("closed", axis)

    def meet(self, axes: Sequence[Axis | None]) -> Axis | None:
        """Join axes of one size that meet; one without labels closes the others."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes):
            for axis in known:
                self.close_axis(axis)
            return None
        for axis in known[1:]:
            self.labels.join(known[0], axis)
        return known[0] if known else None

    def sum_over(self, x: Axis | None, weight: object, dim: int) -> None:
        """Let a product sum over ``x`` and an axis of its weight."""
        self.meet([x, self.axes_of(weight)[dim]])
        if isinstance(weight, Node) and weight.name in self._names:
            self.reads.add((self._names[weight.name], dim))

    def heads(self, axes: Sequence[Axis | None]) -> Axis | None:
        """Join axes that are multiplied position by position: heads of an attention."""
        axis = self.meet(axes)
        if axis is not None:
            self.labels.mark("attention", axis)
        return axis
