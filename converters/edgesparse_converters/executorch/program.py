"""What a ``.pte`` file holds, read without the runtime and without running anything.

A ``.pte`` is a flatbuffer (methods, tensors, instructions) followed by aligned segments::

    0   root offset, identifier "ET12"
    8   "eh00", header length, flatbuffer size, offset of the first segment, bytes of segments;
        none of this where no segment has any bytes
    …   flatbuffer
    …   segments: constants of the kernels, data by name for the delegates, delegate graphs

Only the flatbuffer is parsed; segments are slices of a memory map.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgesparse.errors import SourceError
from edgesparse_converters.executorch.apart import SUFFIX, read_tensors
from edgesparse_converters.executorch.flatbuffer import PROGRAM_SCHEMA, to_json
from edgesparse_converters.executorch.tables import check_tables

IDENTIFIER = b"ET12"
COREML_BACKEND = "CoreMLBackend"
_HEADER = struct.Struct("<4s4s4sIQQQ")


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """One call of a kernel in a method.

    Attributes:
        operator: Its name with overload, ``aten::add.out``.
        arguments: Indices into the method's values.
    """

    operator: str
    arguments: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A parsed ``.pte``.

    Attributes:
        path: The file.
        data: Its bytes, memory-mapped.
        flatbuffer_nbytes: Bytes of the flatbuffer with its header.
        segment_base: Offset of the first segment in the file.
        schema: The flatbuffer as plain JSON values, keyed as in ExecuTorch's ``program.fbs``.
    """

    path: Path
    data: memoryview = field(repr=False)
    flatbuffer_nbytes: int
    segment_base: int
    schema: dict[str, Any] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Execution plans by method name."""
        return {plan["name"]: plan for plan in self.schema["execution_plan"]}

    @cached_property
    def named(self) -> dict[str, memoryview]:
        """Data that delegates refer to by name."""
        return {
            entry["key"]: self.segment(entry["segment_index"])
            for entry in self.schema.get("named_data") or []
        }

    def segment(self, index: int) -> memoryview:
        """Return the bytes of a segment.

        Raises:
            SourceError: No such segment, or it ends after the file.
        """
        segments = self.schema["segments"]
        if not 0 <= index < len(segments):
            raise _damaged(self.path, f"it refers to segment {index} of {len(segments)}")
        start = self.segment_base + segments[index]["offset"]
        return _slice(self.path, self.data, start, segments[index]["size"])

    @property
    def constants_nbytes(self) -> int:
        """Bytes of the kernels' constants, those that are kept apart included."""
        constants = self.schema["constant_segment"]
        # The first offset is that of no constant: with it alone there may be no segment at all.
        any_inside = len(constants["offsets"]) > 1
        inside = len(self.segment(constants["segment_index"])) if any_inside else 0
        return inside + sum(map(len, self.apart.values()))

    @cached_property
    def apart_path(self) -> Path | None:
        """The file with the weights that are kept apart; None where there are none."""
        plans = self.schema["execution_plan"]
        values = (value["val"] for plan in plans for value in plan["values"])
        any_apart = any(isinstance(value, dict) and _apart_name(value) for value in values)
        return self.path.with_suffix(SUFFIX) if any_apart else None

    @cached_property
    def apart(self) -> dict[str, memoryview]:
        """Weights that are kept apart, by name.

        Raises:
            SourceError: Their file is not there, or is damaged.
        """
        return {} if self.apart_path is None else read_tensors(self.apart_path)

    def constant(self, value: dict[str, Any]) -> memoryview:
        """Return the stored bytes of a constant tensor value, padding included.

        Raises:
            SourceError: The value is no stored constant.
        """
        name = _apart_name(value)
        if name:
            if name not in self.apart:
                raise _damaged(self.path, f"{self.apart_path} has no tensor {name!r}")
            return self.apart[name]
        constants = self.schema["constant_segment"]
        index, offsets = value["data_buffer_idx"], constants["offsets"]
        if not 0 < index < len(offsets):
            raise _damaged(self.path, f"a tensor refers to constant {index} of {len(offsets)}")
        segment = self.segment(constants["segment_index"])
        end = offsets[index + 1] if index + 1 < len(offsets) else len(segment)
        return _slice(self.path, segment, offsets[index], end - offsets[index])

    def delegates(self, method: str) -> Iterator[tuple[str, memoryview]]:
        """Yield (backend name, processed bytes) of every delegate of a method."""
        for delegate in self.methods[method]["delegates"]:
            reference = delegate["processed"]
            if reference["location"] == "SEGMENT":
                yield delegate["id"], self.segment(reference["index"])
            else:
                inline = self.schema["backend_delegate_data"][reference["index"]]["data"]
                yield delegate["id"], memoryview(bytes(inline))

    def kernel_uses(self, method: str) -> Iterator[KernelUse]:
        """Yield every kernel call of a method, in order."""
        plan = self.methods[method]
        names = [_operator_name(operator) for operator in plan["operators"]]
        for chain in plan["chains"]:
            for instruction in chain["instructions"]:
                if instruction["instr_args_type"] == "KernelCall":
                    call = instruction["instr_args"]
                    yield KernelUse(operator=names[call["op_index"]], arguments=tuple(call["args"]))

    @property
    def is_coreml(self) -> bool:
        """Whether ``forward`` has a Core ML delegate, which Apple's runtime executes."""
        delegates = self.methods.get("forward", {}).get("delegates") or []
        return any(delegate.get("id") == COREML_BACKEND for delegate in delegates)

    def tensor_sizes(self, method: str, place: int) -> tuple[int, ...]:
        """Return the sizes of an input of a method."""
        plan = self.methods[method]
        return tuple(plan["values"][plan["inputs"][place]]["val"]["sizes"])

    @property
    def operators(self) -> tuple[str, ...]:
        """Every operator any method calls, ``namespace::name.overload``, sorted."""
        plans = self.schema["execution_plan"]
        return tuple(sorted({_operator_name(o) for plan in plans for o in plan["operators"]}))


def read_program(path: Path) -> Program:
    """Parse the flatbuffer of a ``.pte`` and map the rest.

    Raises:
        SourceError: The file cannot be read, or is no whole ``.pte``.
    """
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read as a .pte: {error}") from None
    flatbuffer_nbytes, segment_base = check_header(path, data)
    schema = _parse(path, bytes(data[:flatbuffer_nbytes]))
    if segment_base is None and any(segment["size"] for segment in schema["segments"]):
        raise _damaged(path, "the extended header is missing")
    return Program(
        path=path,
        data=data,
        flatbuffer_nbytes=flatbuffer_nbytes,
        segment_base=segment_base or 0,
        schema=schema,
    )


def check_header(path: Path, data: memoryview) -> tuple[int, int | None]:
    """Return (bytes of the flatbuffer, offset of the first segment or None without a header).

    A program whose weights are all apart, and that has no delegate, has no bytes in its segments
    and then no extended header. The runtime aborts the process on an identifier that is not text,
    so this comes before it.

    Raises:
        SourceError: Not a ``.pte``, or a cut one.
    """
    if len(data) < _HEADER.size + 8:
        raise _damaged(path, f"{len(data)} bytes are too few for a header")
    _, identifier, magic, _, size, base, segments = _HEADER.unpack_from(data)
    if identifier != IDENTIFIER:
        raise SourceError(
            f"{path}: not a .pte: its identifier is {bytes(identifier)!r}, expected {IDENTIFIER!r}"
        )
    if magic != b"eh00":
        return len(data), None
    if not _HEADER.size < size <= len(data) or (segments and base + segments > len(data)):
        raise _damaged(
            path, f"its header promises {max(size, base + segments)} bytes, it has {len(data)}"
        )
    return size, base


def _parse(path: Path, flatbuffer: bytes) -> dict[str, Any]:
    try:
        parsed = to_json(flatbuffer, PROGRAM_SCHEMA)
        check_tables(parsed)
    except ValueError as error:
        raise _damaged(path, f"its flatbuffer cannot be parsed ({error})") from None
    if not parsed.get("execution_plan"):
        raise _damaged(path, "its flatbuffer holds no method")
    return parsed


def _apart_name(value: dict[str, Any]) -> str:
    """Return the name of a tensor that is kept apart, "" for any other."""
    info = value.get("extra_tensor_info") or {}
    return str(info["fully_qualified_name"]) if info.get("location") == "EXTERNAL" else ""


def _slice(path: Path, data: memoryview, start: int, size: int) -> memoryview:
    if start < 0 or size < 0 or start + size > len(data):
        raise _damaged(path, f"bytes {start}..{start + size} lie outside of {len(data)}")
    return data[start : start + size]


def _operator_name(operator: dict[str, str]) -> str:
    return f"{operator['name']}.{operator['overload']}".removesuffix(".")


def _damaged(path: Path, what: str) -> SourceError:
    return SourceError(f"{path}: damaged .pte: {what}; export it again")
