"""Read and write safetensors files: written with every place aligned, read by memory map.

A file may come from a stranger: the header is believed only after every number in it has been held
against the file's own size. Nothing is copied on opening; a tensor is mapped copy-on-write, so that
whoever gets it may change it and the file stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.store.layout import (
    CODE_NBYTES,
    DTYPE_OF_CODE,
    MAX_HEADER_NBYTES,
    METADATA,
    Entry,
    Layout,
    lay_out,
)
from edgesparse.store.strict_json import parse_object

if TYPE_CHECKING:
    import torch

    Storable: TypeAlias = "NDArray[Any] | torch.Tensor"

_CHUNK_NBYTES = 1 << 24
_MAX_DIMENSIONS = 16
_MAX_SPAN = 1 << 62  # product of the dimensions that are not 0; beyond, NumPy cannot index


class TensorFile:
    """One safetensors file, checked and mapped.

    Args:
        path: The file.

    Attributes:
        entries: What is in it, by name.

    Raises:
        CorruptPack: Truncated, not safetensors, or a header that contradicts itself or the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = _map(path)
        self.entries, self._begins = _read_header(self._bytes, path)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self._bytes.nbytes

    def sha256(self) -> str:
        """Return the digest of the bytes this object has mapped."""
        digest = hashlib.sha256()
        for begin in range(0, self.nbytes, _CHUNK_NBYTES):
            digest.update(self._bytes[begin : begin + _CHUNK_NBYTES].data)
        return digest.hexdigest()

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as a NumPy array; bfloat16, which NumPy lacks, as uint16."""
        entry = self.entries[name]
        dtype = "uint16" if entry.dtype == "bfloat16" else entry.dtype
        begin = self._begins[name]
        raw = np.asarray(self._bytes)[begin : begin + entry.nbytes]
        if begin % entry.itemsize:  # the format does not promise alignment; torch needs it
            raw = raw.copy()
        return raw.view(dtype).reshape(entry.shape)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as a torch tensor over the mapped bytes."""
        import torch

        tensor = torch.from_numpy(self.array(name))
        return tensor.view(torch.bfloat16) if self.entries[name].dtype == "bfloat16" else tensor


def entry_of(name: str, value: Storable) -> Entry:
    """Return the entry a NumPy array or a torch tensor makes."""
    return Entry(name, str(value.dtype).removeprefix("torch."), tuple(value.shape))


def write_tensor_file(path: Path, tensors: Mapping[str, Storable]) -> str:
    """Write a new file, flushed to the disk; return its SHA-256.

    Args:
        path: Where; nothing may be there yet.
        tensors: NumPy arrays or torch tensors on the CPU; read a chunk at a time.

    Raises:
        FormatError: A dtype that cannot be stored.
        OSError: The disk is full, or another fault of the file system.
    """
    layout = lay_out(entry_of(name, value) for name, value in tensors.items())
    return _write(path, layout, tensors)


def write_bytes(path: Path, content: bytes) -> str:
    """Write a new small file, flushed to the disk; return its SHA-256."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, layout: Layout, tensors: Mapping[str, Storable]) -> str:
    digest = hashlib.sha256(layout.header)
    with path.open("xb") as file:
        file.write(layout.header)
        for entry in layout.entries:
            raw = _raw(tensors[entry.name])
            for begin in range(0, raw.nbytes, _CHUNK_NBYTES):
                chunk = raw[begin : begin + _CHUNK_NBYTES].data
                digest.update(chunk)
                file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        if file.tell() != layout.nbytes:
            raise FormatError(f"{path}: wrote {file.tell()} bytes, expected {layout.nbytes}")
    return digest.hexdigest()


def _raw(value: Storable) -> NDArray[np.uint8]:
    """Return the bytes of an array or tensor, without a copy when it is contiguous."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    import torch

    flat = value.detach().contiguous().reshape(-1)
    raw: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return raw


def _map(path: Path) -> NDArray[np.uint8]:
    """Map a regular file copy-on-write."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CorruptPack(f"{path}: not a regular file")
        if status.st_size < 8:
            raise CorruptPack(f"{path}: {status.st_size} bytes, too short for safetensors")
        return np.memmap(path, dtype=np.uint8, mode="c")
    except OSError as error:
        raise CorruptPack(f"cannot read {path}: {error.strerror or error}") from None


def _read_header(raw: NDArray[np.uint8], path: Path) -> tuple[dict[str, Entry], dict[str, int]]:
    """Return the entries and where each begins in the file, all checked against its size."""
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > min(MAX_HEADER_NBYTES, raw.nbytes - 8):
        raise CorruptPack(
            f"{path}: header of {length} bytes in a file of {raw.nbytes}; truncated, or not a "
            "safetensors file"
        )
    header = parse_object(raw[8 : 8 + length].tobytes(), str(path))
    header.pop(METADATA, None)
    entries, begins, spans = {}, {}, [(0, 0)]
    for name, fields in header.items():
        entry, (begin, end) = _entry(name, fields, path)
        entries[name], begins[name] = entry, 8 + length + begin
        spans.append((begin, end))
    spans.sort()
    if any(end != begin for (_, end), (begin, _) in pairwise(spans)):
        raise CorruptPack(f"{path}: the header's offsets overlap or leave holes; damaged")
    if 8 + length + spans[-1][1] != raw.nbytes:
        raise CorruptPack(
            f"{path}: the header describes {8 + length + spans[-1][1]} bytes, the file has "
            f"{raw.nbytes}; truncated or damaged: get it again"
        )
    return entries, begins


def _entry(name: str, fields: object, path: Path) -> tuple[Entry, tuple[int, int]]:
    """Read one tensor's line of the header."""
    match fields:
        case {
            "dtype": str(code),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
        } if all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            pass
        case _:
            raise CorruptPack(f"{path}: {name!r} has no dtype, shape and offsets; damaged header")
    if code not in CODE_NBYTES:
        raise CorruptPack(
            f"{path}: {name!r} has dtype {code!r}; known: {', '.join(CODE_NBYTES)}. Convert the "
            "model to one of them first"
        )
    if len(shape) > _MAX_DIMENSIONS or math.prod(n for n in shape if n) > _MAX_SPAN:
        raise CorruptPack(f"{path}: {name!r} has an impossible shape of {len(shape)} dimensions")
    entry = Entry(name, DTYPE_OF_CODE[code], tuple(shape))
    if end - begin != entry.nbytes:
        raise CorruptPack(
            f"{path}: {name!r} of shape {list(shape)} and dtype {code} needs {entry.nbytes} bytes, "
            f"its offsets give it {end - begin}; damaged header"
        )
    return entry, (begin, end)
