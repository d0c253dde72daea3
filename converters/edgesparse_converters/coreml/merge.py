"""Several packages of one function each to one package, every constant written once.

coremltools' ``save_multifunction`` reads all constants of all parts into memory, a byte an element
or more. Here the parts' programs are put side by side as they are, and their weight files are
copied into one, record by record: of constants that are equal only the first, to which the later
ones are redirected. Placeholders, all alike before ``placeholders.fill``, are equal if they stand
for the same weight. The file is the one coremltools would have written, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from edgesparse_converters.coreml.blob import (
    ALIGNMENT,
    HEADER,
    MAGIC,
    RECORD,
    TYPES,
    VERSION,
    Record,
)
from edgesparse_converters.coreml.compat import quiet
from edgesparse_converters.coreml.convert import save
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import stored_blobs

Key = tuple[object, ...]


def merge(
    parts: Mapping[str, Path], path: Path, record: Mapping[str, Any], *, hollow: Collection[str]
) -> None:
    """Write one package with one function for each part.

    Args:
        parts: A package by the name its function will have; the first is the default.
        path: The package to write; it does not exist.
        record: What goes into its metadata.
        hollow: Names of the values in the programs whose numbers are placeholders.
    """
    import coremltools as ct
    from coremltools.proto import Model_pb2

    whole = Model_pb2.Model()
    whole.description.defaultFunctionName = next(iter(parts))
    with TemporaryDirectory(dir=path.parent) as folder:
        with (Path(folder) / "weight.bin").open("wb") as file:
            writer = _Writer(file)
            for name, part in parts.items():
                spec, package = ct.utils.load_spec(str(part)), Package(part)
                empty = dict(_placeholders(package, hollow))
                for value in _references(spec.mlProgram):
                    value.blobFileValue.offset = writer.place(package, empty, value)
                _add_function(whole, name, spec)
            writer.finish()
        with quiet():
            model = ct.models.MLModel(whole, weights_dir=folder, skip_model_load=True)
        save(model, path, record)


def _add_function(whole: Any, name: str, spec: Any) -> None:
    """Add the only function of a part's model and its description under another name."""
    whole.specificationVersion = max(whole.specificationVersion, spec.specificationVersion)
    whole.mlProgram.version = spec.mlProgram.version
    whole.mlProgram.functions[name].CopyFrom(spec.mlProgram.functions["main"])
    described = whole.description.functions.add(name=name)
    for field in ("input", "output", "state"):
        getattr(described, field).MergeFrom(getattr(spec.description, field))


def _placeholders(package: Package, hollow: Collection[str]) -> Iterator[tuple[int, Key]]:
    """Yield the offset and an identity of every placeholder in a part's weight file."""
    for name in hollow:
        for key, value in stored_blobs(package, name).items():
            yield value.offset, ("placeholder", name, key)


def _references(program: Any) -> list[Any]:
    """Return every constant of a program that lies in the weight file, as they lie there."""
    blocks = (b for f in program.functions.values() for b in f.block_specializations.values())
    values = (value for block in blocks for value in _values(block))
    found = [value for value in values if value.WhichOneof("value") == "blobFileValue"]
    return sorted(found, key=lambda value: value.blobFileValue.offset)


def _values(block: Any) -> Iterator[Any]:
    """Yield every constant of a block."""
    for operation in block.operations:
        yield from operation.attributes.values()
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "value":
                    yield binding.value
        for nested in operation.blocks:
            yield from _values(nested)


class _Writer:
    """A weight file that grows record by record."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[Key, int] = {}
        file.write(bytes(HEADER.size))

    def place(self, package: Package, placeholders: Mapping[int, Key], value: Any) -> int:
        """Return where the constant that a part's program refers to is in this file."""
        reference = value.blobFileValue
        shape = tuple(size.constant.size for size in value.type.tensorType.dimensions)
        source = package.weight_file(reference.fileName)
        record = source.record(reference.offset)
        data = source.data(record)
        digest = placeholders.get(reference.offset, ("content", hashlib.sha256(data).digest()))
        key = (*digest, record.type, shape)
        if key not in self._offsets:
            self._offsets[key] = self._append(record, data)
        return self._offsets[key]

    def _append(self, record: Record, data: memoryview) -> int:
        code, offset = TYPES[record.type].code, self._file.tell()
        start = offset + RECORD.size
        self._file.write(RECORD.pack(MAGIC, code, record.nbytes, start, record.padding_bits))
        self._file.write(data)
        self._file.write(bytes(-len(data) % ALIGNMENT))
        return offset

    def finish(self) -> None:
        """Write how many records there are."""
        self._file.seek(0)
        self._file.write(HEADER.pack(len(self._offsets), VERSION))
