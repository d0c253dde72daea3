"""Compressed weights as a package on disk holds them.

Reads the program and the weight file itself; what coremltools thinks it wrote is not consulted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgesparse.errors import SourceError
from edgesparse.packed import PackedTensor
from edgesparse_converters.coreml import forms
from edgesparse_converters.coreml.chains import KEYS, ChainReader, Weight, stored_in
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.program import BlobValue, Operation, operations

METADATA_KEY = "edgesparse"
SUFFIXES = ("", "_cast_fp16", "_to_fp16")
"""What coremltools appends to the name of a value when it narrows it."""


def recorded(package: Package) -> dict[str, Any]:
    """Return what the exporter left in the package about itself; nothing if it is not ours."""
    try:
        record = json.loads(package.metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def program_names(package: Package, packed: Mapping[str, PackedTensor]) -> dict[str, str]:
    """Return the name of the value of each packed tensor, as the package's metadata say.

    Raises:
        SourceError: The package was not written from these tensors.
    """
    names = recorded(package).get("weights")
    if not isinstance(names, dict):
        raise SourceError(
            f"{package.path}: edgesparse did not write it; there is nothing to compare it with"
        )
    missing = sorted(set(packed) - set(names))
    if missing:
        raise SourceError(
            f"{package.path}: it was written from another model: it has no {missing[0]}"
        )
    return {name: str(names[name]) for name in packed}


def read_weights(package: Package, function: str | None = None) -> dict[str, Weight]:
    """Return every compressed weight of a function by the name of its value.

    Raises:
        SourceError: The weight file contradicts the program.
    """
    producers = _producers(package, function)
    compressed = [op for op in producers.values() if op.type.startswith("constexpr_")]
    bound = (b for op in compressed for bindings in op.inputs.values() for b in bindings)
    inner = {binding for binding in bound if isinstance(binding, str)}
    last = {op.name: op for op in compressed if not any(o.name in inner for o in op.outputs)}
    return {name: ChainReader(package, producers).weight(op) for name, op in last.items()}


def read_weight(package: Package, name: str, function: str | None = None) -> Weight:
    """Return the weight whose value was given ``name`` when it was written.

    Raises:
        SourceError: There is none, or the weight file contradicts the program.
    """
    producers = _producers(package, function)
    return ChainReader(package, producers).weight(_named(package, producers, name))


def stored_blobs(package: Package, name: str) -> dict[str, BlobValue]:
    """Return where the weight file holds the ``mask`` and ``data`` of an integer weight.

    What is short enough to stand in the program itself is left out.

    Raises:
        SourceError: There is no such weight.
    """
    producers = _producers(package, None)
    reader = ChainReader(package, producers)
    stored = stored_in(reader.chain(_named(package, producers, name)))
    keys = zip(("mask", "data"), KEYS[stored.type], strict=True)
    found = {part: reader.value(stored, key) for part, key in keys if key}
    return {part: value for part, value in found.items() if isinstance(value, BlobValue)}


def _named(package: Package, producers: Mapping[str, Operation], name: str) -> Operation:
    """Return the last operation of the weight ``name``."""
    for suffix in SUFFIXES:
        operation = producers.get(name + suffix)
        if operation is not None and operation.type.startswith((forms.CONST, "constexpr_")):
            return operation
    raise SourceError(f"{package.path}: the program has no weight {name!r}")


def _producers(package: Package, function: str | None) -> dict[str, Operation]:
    """Return the operation that computes each value."""
    program = package.program
    block = program.functions[function or program.default].block
    return {named.name: op for op in operations(block) for named in op.outputs}
