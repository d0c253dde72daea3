"""A list of tensors that stays in memory up to a limit and beyond it lies in a file without a name.

The file is gone with the process, however that ends.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import CalibrationError


@dataclass
class _Spilled:
    """Where one tensor lies in the file."""

    begin: int
    room: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Activations:
    """Tensors by position.

    Args:
        limit_nbytes: Most bytes held in memory; None holds everything.
        directory: Where the file is made; None is the system's place for temporary files.
    """

    def __init__(self, limit_nbytes: int | None = None, directory: Path | None = None) -> None:
        self._limit, self._directory = limit_nbytes, directory
        self._items: list[Tensor | _Spilled] = []
        self._held = self._end = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def held_nbytes(self) -> int:
        """Bytes in memory."""
        return self._held

    def append(self, value: Tensor) -> None:
        """Add one tensor."""
        self._items.append(self._stored(value, None))

    def __getitem__(self, index: int) -> Tensor:
        item = self._items[index]
        return item if isinstance(item, Tensor) else self._read(item)

    def __setitem__(self, index: int, value: Tensor) -> None:
        old = self._items[index]
        if isinstance(old, Tensor):
            self._held -= old.nbytes
        self._items[index] = self._stored(value, old if isinstance(old, _Spilled) else None)

    def _stored(self, value: Tensor, place: _Spilled | None) -> Tensor | _Spilled:
        """Keep a tensor in memory if there is room and it was there before, else in the file."""
        if place is None and (self._limit is None or self._held + value.nbytes <= self._limit):
            self._held += value.nbytes
            return value
        try:
            return self._write(value, place)
        except OSError as error:
            raise CalibrationError(
                f"activations of {value.nbytes} bytes cannot be put aside: "
                f"{error.strerror or error}; make room on that disk, or raise the memory limit"
            ) from None

    def _write(self, value: Tensor, place: _Spilled | None) -> _Spilled:
        if self._file is None:
            self._file = TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - see finalize
            weakref.finalize(self, self._file.close)
        if place is None or place.room < value.nbytes:
            place = _Spilled(self._end, value.nbytes, value.shape, value.dtype, value.device)
            self._end += value.nbytes
        raw = _bytes_of(value.detach().cpu().contiguous())
        self._file.seek(place.begin)
        while raw:
            raw = raw[self._file.write(raw) :]
        return _Spilled(place.begin, place.room, value.shape, value.dtype, value.device)

    def _read(self, place: _Spilled) -> Tensor:
        assert self._file is not None
        value = torch.empty(place.shape, dtype=place.dtype)
        raw = _bytes_of(value)
        self._file.seek(place.begin)
        while raw:
            count = self._file.readinto(raw)  # type: ignore[attr-defined]  # unbuffered: a FileIO
            if not count:
                raise CalibrationError("activations put aside on disk are gone; run again")
            raw = raw[count:]
        return value.to(place.device)


def _bytes_of(value: Tensor) -> memoryview:
    raw: NDArray[np.uint8] = value.reshape(-1).view(torch.uint8).numpy()
    return raw.data
