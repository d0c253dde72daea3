"""A program with inputs and the outputs it should give, in one file: ExecuTorch's ``.bpte``.

ExecuTorch's own runners take such a file and say whether a device computes what it should. It is a
flatbuffer "BP08", and the whole ``.pte`` is one of its values::

    BundledProgram   version, [suite], the bytes of the program
    suite            name of the method, [case]
    case             [input], [expected output]
    tensor           type, sizes, bytes

Written with ExecuTorch's tools, read here without them, every offset checked: ``flatc`` would
make a number of JSON of every byte of the program.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse_converters.executorch.quiet import quiet

SUFFIX = ".bpte"
IDENTIFIER = b"BP08"
MAX_ITEMS = 65_536
# Numbers of ``scalar_type.fbs``.
_DTYPES: dict[int, type[np.generic]] = {
    0: np.uint8, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.int64, 5: np.float16, 6: np.float32,
    7: np.float64, 11: np.bool_,
}  # fmt: skip
_TENSOR = 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """Inputs of a method in its order, and the outputs they should give."""

    inputs: tuple[NDArray[Any], ...]
    outputs: tuple[NDArray[Any], ...]


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """What a bundled program holds.

    Attributes:
        program: The bytes of the ``.pte``.
        cases: By name of the method.
    """

    program: bytes = field(repr=False)
    cases: dict[str, tuple[Case, ...]]


def write_bundled(path: Path, program: Path, method: str, cases: Sequence[Case]) -> None:
    """Write ``program`` with cases of one of its methods to ``path``."""
    import torch

    with quiet():
        from executorch.devtools import BundledProgram
        from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite
        from executorch.devtools.bundled_program.serialize import (
            serialize_from_bundled_program_to_flatbuffer,
        )

        tests = [
            MethodTestCase(
                inputs=[torch.from_numpy(array.copy()) for array in case.inputs],
                expected_outputs=[torch.from_numpy(array.copy()) for array in case.outputs],
            )
            for case in cases
        ]
        suite = MethodTestSuite(method_name=method, test_cases=tests)
        bundled = BundledProgram(None, [suite], pte_file_path=str(program))
        path.write_bytes(serialize_from_bundled_program_to_flatbuffer(bundled))


def read_bundled(path: Path) -> Bundled:
    """Read a bundled program.

    Raises:
        SourceError: It cannot be read, is none, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
    if data[4:8] != IDENTIFIER:
        raise SourceError(
            f"{path}: not a bundled program: its identifier is {data[4:8]!r}, expected "
            f"{IDENTIFIER!r}"
        )
    try:
        root = _Table(data, _follow(data, 0))
        suites = [
            (suite.text(0), tuple(_case(case) for case in suite.tables(1)))
            for suite in root.tables(1)
        ]
        return Bundled(program=root.raw(2), cases=dict(suites))
    except (struct.error, ValueError) as error:
        raise SourceError(f"{path}: damaged bundled program: {error}; export it again") from None


def _case(table: _Table) -> Case:
    inputs, outputs = (tuple(_tensor(value) for value in table.tables(slot)) for slot in (0, 1))
    return Case(inputs=inputs, outputs=outputs)


def _tensor(value: _Table) -> NDArray[Any]:
    if value.byte(0) != _TENSOR:
        raise ValueError("a value that is no tensor")
    tensor = value.table(1)
    dtype = _DTYPES.get(tensor.byte(0))
    if dtype is None:
        raise ValueError(f"a tensor of type {tensor.byte(0)}")
    sizes, stored = tensor.integers(1), tensor.raw(2)
    nbytes = np.dtype(dtype).itemsize * math.prod(sizes)
    if min(sizes, default=0) < 0 or nbytes != len(stored):
        raise ValueError(f"a tensor of sizes {sizes} in {len(stored)} bytes")
    return np.frombuffer(stored, np.dtype(dtype).newbyteorder("<")).reshape(sizes)


def _number(data: bytes, form: str, position: int) -> int:
    # A negative position would count from the end.
    if position < 0:
        raise ValueError(f"an offset to {position}")
    return int(struct.unpack_from(form, data, position)[0])


def _follow(data: bytes, position: int) -> int:
    return position + _number(data, "<I", position)


class _Table:
    """A table of a flatbuffer: fields by their slot, 0 or nothing where they are not there."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._fields = position - _number(data, "<i", position)
        self._end = _number(data, "<H", self._fields)

    def _field(self, slot: int) -> int | None:
        place = 4 + 2 * slot
        if place + 2 > self._end:
            return None
        offset = _number(self._data, "<H", self._fields + place)
        return self._position + offset if offset else None

    def byte(self, slot: int) -> int:
        position = self._field(slot)
        return 0 if position is None else _number(self._data, "<B", position)

    def table(self, slot: int) -> _Table:
        position = self._field(slot)
        if position is None:
            raise ValueError("a value without its table")
        return _Table(self._data, _follow(self._data, position))

    def _vector(self, slot: int, width: int) -> tuple[int, int]:
        """Return where the elements of a vector begin, and how many there are."""
        position = self._field(slot)
        if position is None:
            return 0, 0
        start = _follow(self._data, position)
        count = _number(self._data, "<I", start)
        if start + 4 + width * count > len(self._data):
            raise ValueError(f"{count} elements at {start} of {len(self._data)} bytes")
        return start + 4, count

    def raw(self, slot: int) -> bytes:
        start, count = self._vector(slot, 1)
        return self._data[start : start + count]

    def text(self, slot: int) -> str:
        return self.raw(slot).decode()

    def integers(self, slot: int) -> tuple[int, ...]:
        start, count = self._few(slot)
        return struct.unpack_from(f"<{count}i", self._data, start)

    def tables(self, slot: int) -> list[_Table]:
        start, count = self._few(slot)
        places = (start + 4 * i for i in range(count))
        return [_Table(self._data, _follow(self._data, place)) for place in places]

    def _few(self, slot: int) -> tuple[int, int]:
        start, count = self._vector(slot, 4)
        if count > MAX_ITEMS:
            raise ValueError(f"{count} elements")
        return start, count
