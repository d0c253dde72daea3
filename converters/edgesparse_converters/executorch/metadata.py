"""What a program says about itself: one constant string method, ``edgesparse``.

A ``.pte`` has no names of inputs and outputs and no room for notes, but a method may return a
constant. It is JSON: the version of this package, names, and the form of every packed weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import edgesparse
from edgesparse_converters.executorch.lowering import Form, Use
from edgesparse_converters.executorch.program import Program

if TYPE_CHECKING:
    from edgesparse_converters.executorch.methods import Method

METHOD = "edgesparse"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The words of a program about itself; empty for a program of other origin.

    Attributes:
        inputs: Names of the inputs, in order.
        outputs: Names of the outputs, in order.
        forms: Form of every use of a packed weight, by parameter name.
        activations: How activations enter our operators.
        cache: How keys and values are kept.
        version: Version of edgesparse that wrote it.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    forms: dict[str, Form] | None = None
    activations: str = "float32"
    cache: str = "float32"
    version: str = ""


def write_metadata(
    method: Method, uses: Iterable[Use], activations: str, cache: str = "float32"
) -> str:
    """Return the constant; uses of one form share a key, so names are all it costs."""
    forms: dict[str, list[str]] = {}
    for use in uses:
        forms.setdefault(use.form.name, []).append(use.name)
    value = {
        "version": edgesparse.__version__,
        "inputs": list(method.inputs),
        "outputs": list(method.outputs),
        "forms": forms,
        "activations": activations,
        "cache": cache,
    }
    return json.dumps(value, separators=(",", ":"))


def read_metadata(program: Program) -> Metadata:
    """Return what the program says about itself, or an empty ``Metadata``."""
    plan = program.methods.get(METHOD)
    if plan is None:
        return Metadata()
    try:
        value = json.loads(plan["values"][plan["outputs"][0]]["val"]["string_val"])
        return Metadata(
            inputs=tuple(value["inputs"]),
            outputs=tuple(value["outputs"]),
            forms={name: Form[form] for form, names in value["forms"].items() for name in names},
            activations=value["activations"],
            cache=value.get("cache", "float32"),
            version=value["version"],
        )
    except (KeyError, IndexError, TypeError, ValueError):
        return Metadata()
