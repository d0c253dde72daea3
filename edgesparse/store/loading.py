"""Read a compressed model, believing nothing in it before it is checked.

The directory may come from a stranger. Files are opened only when they are regular files of the
directory itself; all are held against their SHA-256; the tensors in the file are exactly those the
manifest promises, and each pack has been checked by its format before anybody computes with it.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError, SourceError, UnknownName
from edgesparse.model import CapturedModel, CompressedModel, TensorInfo
from edgesparse.packed import FORMATS, PackedTensor
from edgesparse.store.deflating import inflate
from edgesparse.store.layout import buffer_name
from edgesparse.store.manifest import (
    MANIFEST,
    MAX_MANIFEST_NBYTES,
    WEIGHTS,
    FileRecord,
    Manifest,
    PackedRecord,
    read_manifest,
)
from edgesparse.store.restoring import captured_of
from edgesparse.store.tensorfile import TensorFile

if TYPE_CHECKING:
    import torch


def load(path: Path, *, source: str | Path | CapturedModel | None = None) -> CompressedModel:
    """Read what ``save`` wrote; what is not deflated stays memory-mapped.

    Args:
        path: The directory.
        source: The model it was made from, for the kinds that cannot be rebuilt from the
            directory: code is never imported because a manifest says so. With it, the original
            weights are also at hand.

    Raises:
        SourceError: No compressed model there, or ``source`` is needed or another model.
        FormatError: Written by a newer version, or a format that is not installed.
        CorruptPack: Damaged, or contradicting itself.
    """
    manifest = read_manifest(_manifest_text(path))
    weights = _open_files(path, manifest)
    packed, kept = _split(manifest, weights)
    return CompressedModel(
        captured=captured_of(path, manifest, source),
        packed=packed,
        kept=kept,
        plan=manifest.plan,
        errors=manifest.errors,
        metadata=manifest.metadata,
    )


def _manifest_text(directory: Path) -> bytes:
    path = directory / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise SourceError(
            f"{directory}: no {MANIFEST}; expected a directory written by compress"
            if directory.is_dir()
            else f"{directory}: no such directory"
        )
    size = _regular_size(path)
    if size > MAX_MANIFEST_NBYTES:
        raise CorruptPack(f"{path}: {size} bytes, more than any manifest; damaged")
    return _read(path)


def _open_files(directory: Path, manifest: Manifest) -> TensorFile:
    """Check every file against the manifest; return the weights, mapped."""
    if WEIGHTS not in manifest.files:
        raise CorruptPack(f"{directory / MANIFEST}: does not list {WEIGHTS}; damaged")
    for name, record in manifest.files.items():
        size = _regular_size(directory / name)
        if size != record.nbytes:
            raise CorruptPack(
                f"{directory / name}: {size} bytes, the manifest says {record.nbytes}; truncated "
                "or replaced: get it again"
            )
    for name, record in manifest.files.items():
        if name != WEIGHTS:
            text = _read(directory / name)
            _check_digest(directory / name, hashlib.sha256(text).hexdigest(), record)
    # Hashed through the very mapping that is used afterwards: the file has no time to change.
    weights = TensorFile(directory / WEIGHTS)
    _check_digest(directory / WEIGHTS, weights.sha256(), manifest.files[WEIGHTS])
    return weights


def _regular_size(path: Path) -> int:
    """Return the size of a regular file; links and devices are refused."""
    try:
        status = path.lstat()
    except OSError as error:
        raise CorruptPack(f"cannot read {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise CorruptPack(
            f"{path}: not a regular file; links are not followed, copy the files themselves"
        )
    return status.st_size


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptPack(f"cannot read {path}: {error.strerror or error}") from None


def _check_digest(path: Path, digest: str, record: FileRecord) -> None:
    if digest != record.sha256:
        raise CorruptPack(
            f"{path}: SHA-256 is {digest[:16]}…, the manifest says {record.sha256[:16]!r}…; the "
            "file was damaged or changed: get it again"
        )


def _split(
    manifest: Manifest, weights: TensorFile
) -> tuple[dict[str, PackedTensor], dict[str, torch.Tensor]]:
    """Return packed and kept tensors; together they are all there is in the file."""
    packed, kept, used = {}, {}, set()
    for tensor in manifest.tensors:
        record = manifest.packed.get(tensor.name)
        if record is None:
            used.add(tensor.name)
            kept[tensor.name] = _kept(tensor, weights)
        else:
            used |= {buffer_name(tensor.name, buffer) for buffer in record.buffers}
            packed[tensor.name] = read_packed(tensor, record, weights)
    if extra := sorted(set(weights.entries) - used):
        raise CorruptPack(f"{weights.path}: {extra[0]!r} belongs to no tensor of the manifest")
    return packed, kept


def _kept(tensor: TensorInfo, weights: TensorFile) -> torch.Tensor:
    entry = weights.entries.get(tensor.name)
    if entry is None or entry.shape != tensor.shape or entry.dtype != tensor.dtype:
        found = "nothing" if entry is None else f"{entry.dtype} {entry.shape}"
        raise CorruptPack(
            f"{weights.path}: {tensor.name!r} should be {tensor.dtype} {tensor.shape}, found "
            f"{found}; damaged"
        )
    if entry.dtype == "bool" and np.any(weights.array(tensor.name).view(np.uint8) > 1):
        raise CorruptPack(f"{weights.path}: {tensor.name!r} holds bytes that are not 0 or 1")
    return weights.tensor(tensor.name)


def read_packed(tensor: TensorInfo, record: PackedRecord, weights: TensorFile) -> PackedTensor:
    """Return a packed tensor over the mapped bytes of ``weights``, checked by its format.

    Deflated buffers are expanded into memory.

    Raises:
        FormatError: A format that is not installed, or of a newer version.
        CorruptPack: The buffers contradict the record, the shape or each other.
    """
    buffers = {}
    for buffer in record.buffers:
        name = buffer_name(tensor.name, buffer)
        if name not in weights.entries or weights.entries[name].dtype == "bfloat16":
            raise CorruptPack(f"{weights.path}: buffer {name!r} is missing or of the wrong type")
        buffers[buffer] = weights.array(name)
    try:
        for buffer, stream in record.deflated.items():
            buffers[buffer] = inflate(_stream_of(buffers[buffer]), stream)
        packed = PackedTensor(spec=record.spec, shape=tensor.shape, buffers=buffers)
        FORMATS.get(record.spec.name).check(packed)
    except UnknownName as error:
        raise FormatError(f"{tensor.name}: {error}") from None
    except FormatError as error:
        raise type(error)(f"{tensor.name}: {error}") from None
    return packed


def _stream_of(stored: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return the bytes of a stored stream.

    Raises:
        CorruptPack: They are stored as something else.
    """
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise CorruptPack(f"a deflate stream stored as {stored.dtype} {stored.shape}; damaged")
    return stored.view(np.uint8)
