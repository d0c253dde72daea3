"""The manifest of a compressed model: one JSON object, written and read here only.

format_version   of this layout; a reader refuses a newer one
readable_by      oldest version of this package that reads it
source           kind, location, sha256
files            size and SHA-256 of every other file of the directory
tensors          what each is, and how it is stored: ``packed`` (spec, buffer names, and what those
                 expand to that are ``deflated``: type and bytes) or kept
plan, metadata   as the values of the same names
tools            versions that wrote it
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.model import DTYPE_NBYTES, CompressedModel, TensorInfo, TensorKind
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.planner.types import Plan
from edgesparse.store.deflating import Deflated
from edgesparse.store.fields import Fields
from edgesparse.store.layout import CODE_OF_DTYPE
from edgesparse.store.plan_json import plan_from_json, spec_from_json
from edgesparse.store.strict_json import parse_object

MANIFEST = "edgesparse.json"
WEIGHTS = "weights.safetensors"
FORMAT_VERSION = 2  # 1 where no buffer is deflated, which is all that 2 adds
READABLE_BY = "0.1.0"
MAX_MANIFEST_NBYTES = 1 << 26


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file: its size and SHA-256."""

    nbytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackedRecord:
    """How one tensor is packed: the layout, the names of its buffers, and which are deflated."""

    spec: FormatSpec
    buffers: tuple[str, ...]
    deflated: Mapping[str, Deflated] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything in ``edgesparse.json``, checked.

    Attributes:
        source_kind: ``Source.kind``.
        source_location: ``Source.location``.
        source_sha256: Digest of the source's weights, "" if it has no files.
        files: Every other file of the directory by name.
        tensors: ``CapturedModel.tensors``.
        packed: The packed ones by name; the others are kept.
        errors: ``CompressedModel.errors``.
        plan: ``CompressedModel.plan``.
        metadata: ``CompressedModel.metadata``.
    """

    source_kind: str
    source_location: str
    source_sha256: str
    files: Mapping[str, FileRecord]
    tensors: tuple[TensorInfo, ...]
    packed: Mapping[str, PackedRecord]
    errors: Mapping[str, float]
    plan: Plan
    metadata: Mapping[str, Any]


DeflatedBuffers = Mapping[str, Mapping[str, Deflated]]
"""By tensor, and by buffer of it: what is stored as a stream."""


def write_manifest(
    compressed: CompressedModel,
    files: Mapping[str, FileRecord],
    tools: Mapping[str, str],
    deflated: DeflatedBuffers,
) -> bytes:
    """Return the text of the manifest.

    Raises:
        FormatError: The metadata hold a value that JSON has no form for.
    """
    source = compressed.captured.source
    manifest = {
        "format_version": FORMAT_VERSION if deflated else 1,
        "readable_by": READABLE_BY,
        "source": {"kind": source.kind, "location": source.location, "sha256": source.sha256},
        "files": {
            name: {"nbytes": record.nbytes, "sha256": record.sha256}
            for name, record in files.items()
        },
        "tensors": [
            _tensor_to_json(tensor, compressed, deflated) for tensor in compressed.captured.tensors
        ],
        "plan": compressed.plan.to_json(),
        "metadata": dict(compressed.metadata),
        "tools": dict(tools),
    }
    try:
        return json.dumps(manifest, indent=1, allow_nan=False).encode("ascii")
    except (TypeError, ValueError) as error:
        raise FormatError(f"the metadata cannot be written as JSON: {error}") from None


def read_manifest(text: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        FormatError: Written by a newer version than this reader.
        CorruptPack: Anything in it is missing, of the wrong type or contradictory.
    """
    fields = Fields(parse_object(text, MANIFEST), MANIFEST)
    if fields.integer("format_version") > FORMAT_VERSION:
        raise FormatError(
            f"{MANIFEST}: format {fields.integer('format_version')}, this version reads up to "
            f"{FORMAT_VERSION}; it needs edgesparse {fields.text('readable_by')[:40]!r} or newer"
        )
    if fields.integer("format_version") < 1:
        raise fields.wrong("format_version 0 never existed")
    tensors, packed, errors = _read_tensors(fields)
    source = fields.object("source")
    return Manifest(
        source_kind=source.text("kind"),
        source_location=source.text("location"),
        source_sha256=source.text("sha256"),
        files={name: _read_file(name, file) for name, file in fields.object("files").items()},
        tensors=tensors,
        packed=packed,
        errors=errors,
        plan=plan_from_json(fields.object("plan"), {tensor.name: tensor for tensor in tensors}),
        metadata=fields.raw("metadata"),
    )


def _tensor_to_json(
    tensor: TensorInfo, compressed: CompressedModel, deflated: DeflatedBuffers
) -> dict[str, Any]:
    packed, streams = compressed.packed.get(tensor.name), deflated.get(tensor.name, {})
    error = compressed.errors.get(tensor.name, math.nan)
    return {
        "name": tensor.name,
        "aliases": list(tensor.aliases),
        "kind": tensor.kind.value,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "compressible": tensor.compressible,
        "reason": tensor.reason,
        "patchwise": tensor.patchwise,
        "packed": None if packed is None else _packed_to_json(packed, streams),
        "error": error if math.isfinite(error) else None,
    }


def _packed_to_json(packed: PackedTensor, streams: Mapping[str, Deflated]) -> dict[str, Any]:
    data: dict[str, Any] = {"spec": packed.spec.to_json(), "buffers": list(packed.buffers)}
    if streams:
        data["deflated"] = {buffer: asdict(stream) for buffer, stream in streams.items()}
    return data


def _read_tensors(
    fields: Fields,
) -> tuple[tuple[TensorInfo, ...], dict[str, PackedRecord], dict[str, float]]:
    tensors, packed, errors = [], {}, {}
    names: set[str] = set()
    for entry in fields.objects("tensors"):
        tensor = _read_tensor(entry)
        own = {tensor.name, *tensor.aliases}
        if own & names or len(own) != 1 + len(tensor.aliases):
            raise entry.wrong(f"{tensor.name!r} or an alias is described twice")
        names |= own
        tensors.append(tensor)
        if (record := entry.optional_object("packed")) is not None:
            if not tensor.shape or not tensor.numel:
                raise entry.wrong(f"{tensor.name!r} of shape {tensor.shape} cannot be packed")
            packed[tensor.name] = _read_packed(record)
        if (error := entry.optional_number("error")) is not None:
            errors[tensor.name] = error
    return tuple(tensors), packed, errors


def _read_packed(record: Fields) -> PackedRecord:
    buffers, streams = record.texts("buffers"), record.optional_object("deflated")
    deflated = {}
    for buffer, stream in () if streams is None else streams.items():
        dtype, nbytes = stream.text("dtype"), stream.integer("nbytes")
        if buffer not in buffers or dtype not in CODE_OF_DTYPE or dtype == "bfloat16":
            raise stream.wrong(f"no buffer {buffer[:40]!r}, or none of dtype {dtype[:40]!r}")
        deflated[buffer] = Deflated(dtype, nbytes)
    return PackedRecord(
        spec=spec_from_json(record.object("spec")), buffers=buffers, deflated=deflated
    )


def _read_tensor(entry: Fields) -> TensorInfo:
    kind, dtype = entry.text("kind"), entry.text("dtype")
    if kind not in set(TensorKind) or dtype not in DTYPE_NBYTES:
        raise entry.wrong(f"kind {kind[:40]!r} or dtype {dtype[:40]!r} is unknown")
    return TensorInfo(
        name=entry.text("name"),
        kind=TensorKind(kind),
        shape=entry.integers("shape"),
        dtype=dtype,
        aliases=entry.texts("aliases"),
        compressible=entry.boolean("compressible"),
        reason=entry.text("reason"),
        patchwise=entry.optional_boolean("patchwise") or False,
    )


def _read_file(name: str, file: Fields) -> FileRecord:
    plain = name and "/" not in name and "\\" not in name and "\0" not in name
    if not plain or name in (".", "..", MANIFEST):
        raise CorruptPack(f"{MANIFEST}: {name[:80]!r} is not the name of a file of the pack")
    return FileRecord(file.integer("nbytes"), file.text("sha256"))
