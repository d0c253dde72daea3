"""Arrays from an ``.npz`` file that may come from a stranger.

NumPy alone believes two numbers of such a file: how much a member expands to, and how large the
array in it is. Both are held against the bytes that are there before any memory is asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgesparse.errors import SourceError

# A member may be at most this many times its bytes in the file; so may a deflated pack.
_EXPANSION = 64
_SMALL = 1 << 20  # of zeros, say: however far it expands, it is no burden
_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What zipfile and NumPy raise at damaged files; RuntimeError: a password, NotImplementedError: a
# method of compression nobody has.
_DAMAGE = (
    ArithmeticError, AttributeError, BadZipFile, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError, zlib.error,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name.

    Raises:
        SourceError: Not such a file, damaged, Python objects in it, or arrays that are out of all
            proportion to the file.
    """
    try:
        with ZipFile(path) as archive:
            return dict(_members(archive))
    except _DAMAGE as error:
        raise SourceError(f"{path} is no .npz of plain arrays: {error}") from None


def _members(archive: ZipFile) -> Iterator[tuple[str, NDArray[Any]]]:
    expanded = sum(info.file_size for info in archive.infolist())
    stored = sum(info.compress_size for info in archive.infolist())
    if expanded > max(_SMALL, _EXPANSION * stored):
        raise ValueError(f"{stored} bytes are said to expand to {expanded}")
    for info in archive.infolist():
        with archive.open(info) as file:
            yield info.filename.removesuffix(".npy"), _array(file, info.file_size)


def _array(file: IO[bytes], nbytes: int) -> NDArray[Any]:
    """Read one array; its bytes are all there is behind its header."""
    version = npy.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"an array in version {version} of NumPy's format")
    shape, fortran, dtype = _READERS[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects")
    content = file.read(nbytes)
    if len(content) != dtype.itemsize * int(np.prod(shape, dtype=object)):
        raise ValueError(f"{dtype} of shape {shape} in {len(content)} bytes")
    return np.ndarray(shape, dtype, buffer=bytearray(content), order="F" if fortran else "C")
