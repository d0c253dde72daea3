"""Where every tensor of a safetensors file lies: pure arithmetic, no bytes touched.

    u64 little-endian     length n of the header
    n bytes               JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, …}, padded
                          with spaces until 8 + n is a multiple of 64
    the rest              the tensors, without holes; offsets count from here

The format allows no holes, so tensors whose size is a multiple of 64 bytes come first and each of
them starts on a multiple of 64. The others follow, widest elements first, so that each at least
starts on a multiple of its element size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgesparse.errors import FormatError

ALIGNMENT = 64
METADATA = "__metadata__"  # the one header key that is no tensor
MAX_HEADER_NBYTES = 100_000_000  # the limit of the reference reader

CODE_NBYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
CODE_OF_DTYPE = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
    "float16": "F16", "bfloat16": "BF16", "uint32": "U32", "int32": "I32", "float32": "F32",
    "uint64": "U64", "int64": "I64", "float64": "F64",
}  # fmt: skip
# Element types of the buffers the built-in formats make, by how their names begin; else bytes.
_BUFFER_DTYPES = {"mask": "uint64", "scales": "float16", "offsets": "uint32"}
DTYPE_OF_CODE = {code: dtype for dtype, code in CODE_OF_DTYPE.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, before it has a place.

    Attributes:
        name: Its name.
        dtype: NumPy-style name: ``float16``, ``bfloat16``, ``uint8``, …
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in CODE_OF_DTYPE:
            raise FormatError(
                f"{self.name}: dtype {self.dtype} cannot be stored; known: "
                f"{', '.join(CODE_OF_DTYPE)}"
            )

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return CODE_NBYTES[CODE_OF_DTYPE[self.dtype]]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Layout:
    """The places of all tensors of one file.

    Attributes:
        entries: In the order of their bytes.
        header: The first bytes of the file: length, JSON, padding.
        nbytes: Bytes of the whole file.
    """

    entries: tuple[Entry, ...]
    header: bytes
    nbytes: int


def lay_out(entries: Iterable[Entry]) -> Layout:
    """Give every tensor its place.

    Raises:
        FormatError: A name is used twice or means something else in a header, or the header
            exceeds what readers accept.
    """
    ordered = sorted(entries, key=_order)
    header: dict[str, object] = {METADATA: {"format": "pt"}}
    end = 0
    for entry in ordered:
        if entry.name == METADATA:
            raise FormatError(f"a tensor cannot be called {METADATA!r} in safetensors; rename it")
        if entry.name in header:
            raise FormatError(f"two tensors are called {entry.name!r}; rename one")
        begin, end = end, end + entry.nbytes
        header[entry.name] = {
            "dtype": CODE_OF_DTYPE[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_NBYTES:
        raise FormatError(f"a header of {len(text)} bytes; readers accept {MAX_HEADER_NBYTES}")
    return Layout(tuple(ordered), len(text).to_bytes(8, "little") + text, 8 + len(text) + end)


def safetensors_nbytes(entries: Iterable[Entry]) -> int:
    """Return the exact size of the file these tensors make, header included.

    Example:
        >>> safetensors_nbytes([Entry("weight", "float16", (3, 5))])
        158
    """
    return lay_out(entries).nbytes


def packed_entries(name: str, buffer_nbytes: Mapping[str, int]) -> tuple[Entry, ...]:
    """Return the entries ``save`` makes of one packed tensor.

    Args:
        name: The tensor's name.
        buffer_nbytes: Bytes of each buffer by its name, as ``Format.predict_nbytes`` gives them.
    """
    entries = []
    for buffer, nbytes in buffer_nbytes.items():
        dtype = next((d for stem, d in _BUFFER_DTYPES.items() if buffer.startswith(stem)), "uint8")
        itemsize = CODE_NBYTES[CODE_OF_DTYPE[dtype]]
        entries.append(Entry(buffer_name(name, buffer), dtype, (nbytes // itemsize,)))
    return tuple(entries)


def buffer_name(tensor: str, buffer: str) -> str:
    """Return the name in the file of one buffer of a packed tensor."""
    return f"{tensor}.{buffer}"


def _order(entry: Entry) -> tuple[bool, int, str]:
    unaligned = entry.nbytes % ALIGNMENT != 0
    return (unaligned, -entry.itemsize if unaligned else 0, entry.name)
