"""What is in a package, as JSON values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgesparse.exporting import nbytes_on_disk
from edgesparse_converters.coreml.chains import Weight
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import Function, Named, operations
from edgesparse_converters.coreml.readback import METADATA_KEY, read_weights, recorded


def inspect(path: Path) -> dict[str, Any]:
    """Return functions, operators and compressed weights of a package.

    Raises:
        SourceError: Not a package, or damaged.
    """
    package = Package(path)
    program = package.program
    return {
        "target": "coreml",
        "nbytes": nbytes_on_disk(path),
        "specification": program.specification,
        "default_function": program.default,
        "functions": {name: _function(package, f) for name, f in program.functions.items()},
        "metadata": {**program.metadata, METADATA_KEY: str(recorded(package).get("version", ""))},
    }


def _function(package: Package, function: Function) -> dict[str, Any]:
    kinds = Counter(o.type for o in operations(function.block) if o.type != "const")
    weights = read_weights(package, function.name).values()
    return {
        "opset": function.opset,
        "inputs": [_named(i) for i in function.inputs if not i.type.is_state],
        "states": [_named(i) for i in function.inputs if i.type.is_state],
        "outputs": list(function.block.outputs),
        "operators": dict(sorted(kinds.items())),
        "weights": [_weight(weight) for weight in weights],
    }


def _named(value: Named) -> dict[str, Any]:
    return {"name": value.name, "dtype": value.type.dtype, "shape": list(value.type.shape)}


def _weight(weight: Weight) -> dict[str, Any]:
    size = weight.codes.size
    sparsity = 0.0 if weight.mask is None else 1 - float(weight.mask.mean())
    return {
        "name": weight.name,
        "operations": " + ".join(weight.operations),
        "shape": list(weight.codes.shape),
        "dtype": weight.dtype,
        "sparsity": round(sparsity, 6),
        "nbytes": weight.nbytes,
        "bits_per_weight": round(8 * weight.nbytes / size, 4) if size else 0.0,
    }
