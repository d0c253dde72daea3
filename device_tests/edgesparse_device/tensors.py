"""Raw arrays as devices read and write them: little-endian, row-major, no header."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import DeviceError, SourceError

DTYPES = (
    "float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, type and shape of one array; what its raw bytes do not say themselves.

    Attributes:
        name: Name of the model's input or output.
        dtype: NumPy name, one of ``DTYPES``.
        shape: Sizes, none negative.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SourceError(
                f"{self.name}: dtype {self.dtype} cannot be sent to a device; known: "
                + ", ".join(DTYPES)
            )
        if any(size < 0 for size in self.shape):
            raise SourceError(f"{self.name}: shape {self.shape} has a negative size")

    @property
    def nbytes(self) -> int:
        """Bytes of the raw array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def shape_text(self) -> str:
        """The shape as the runner takes it: ``1x16``."""
        return "x".join(map(str, self.shape))

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> TensorSpec:
        """Return the spec of an array."""
        return cls(name=name, dtype=array.dtype.name, shape=array.shape)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> TensorSpec:
        """Read what ``to_json`` wrote.

        Raises:
            SourceError: A field is missing or of another kind.
        """
        name, dtype, shape = value.get("name", ""), value.get("dtype"), value.get("shape")
        if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(shape, list):
            raise SourceError(f"{where}: a tensor needs a name, a dtype and a shape")
        if not all(type(size) is int for size in shape):
            raise SourceError(f"{where}: {name}: shape {shape} is not a list of integers")
        return cls(name=name, dtype=dtype, shape=tuple(shape))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


def write_raw(path: Path, array: NDArray[Any]) -> None:
    """Write the bytes of an array."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    path.write_bytes(np.ascontiguousarray(little).tobytes())


def read_raw(path: Path, spec: TensorSpec) -> NDArray[Any]:
    """Read the bytes of an array, shape and dtype of ``spec``.

    Raises:
        DeviceError: No such file, or not as many bytes as the spec needs.
    """
    try:
        found = path.stat().st_size
        if found != spec.nbytes:
            raise DeviceError(
                f"{path.name}: {found} bytes, {spec.dtype}{list(spec.shape)} needs {spec.nbytes}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DeviceError(f"{path.name}: {error.strerror}") from None
    return np.frombuffer(data, dtype=np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
