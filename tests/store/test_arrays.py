"""``.npz`` files: what NumPy writes is read, and what lies is refused before it takes memory."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from edgesparse.errors import SourceError
from edgesparse.store.arrays import read_arrays

ARRAYS: dict[str, Any] = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "one": np.array(2.5),
    "none": np.zeros((0, 3), np.int8),
    "flags": np.array([True, False]),
    "big": np.arange(5, dtype=">i4"),
    "zeros": np.zeros(100_000),  # expands a thousand times, to less than a megabyte
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(ARRAYS)
    for name, value in ARRAYS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
        assert found[name].flags.writeable


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((1 << 40,)) + b"1234", "shape .1099511627776,. in 4 bytes"),
        (header((1 << 62, 1 << 62)), "in 0 bytes"),
        (header((2,)) + b"123456789", "in 9 bytes"),
        (header((1,), "|O") + b"12345678", "Python objects"),
        (b"\x93NUMPY\x03\x00" + bytes(100), "version"),
        (b"not an array at all", "magic"),
        (b"", ""),
        (bytes(50 << 20), "are said to expand to 52428800"),
    ],
)
def test_what_lies_is_refused_and_takes_no_memory(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = archive(tmp_path / "a.npz", content)
    tracemalloc.start()
    with pytest.raises(SourceError, match=f"no .npz of plain arrays: .*{message}"):
        read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()


def test_what_is_no_archive_or_a_damaged_one(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", header((3,)) + bytes(12))
    whole = path.read_bytes()
    central = whole.index(b"PK\1\2")
    damaged = {
        "absent": None,
        "text": b"text",
        "half": whole[: len(whole) // 2],
        "password": whole[: central + 8] + b"\1" + whole[central + 9 :],
        "method": whole[: central + 10] + struct.pack("<H", 97) + whole[central + 12 :],
        "stream": whole[:50] + bytes(40) + whole[90:],
    }
    for content in damaged.values():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SourceError, match=r"a\.npz is no \.npz"):
            read_arrays(path)
