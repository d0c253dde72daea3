"""The weights inside XNNPACK's delegate graphs, read from the bytes of the file.

A delegate is a header "XH00", a flatbuffer graph and constants; the constants it names live in the
program's named data. A filter of ``qbint4`` is [N, K / 2] bytes, even column in the low nibble,
each code plus 8, with [N, K / group] bfloat16 scales; of ``qcint4`` the same with N float32 scales;
of ``qcint8`` [N, K] int8 codes with N float32 scales; of ``fp32`` the weights, convolutions as
[N, height, width, inputs].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse_converters.executorch.flatbuffer import XNNPACK_SCHEMA, to_json
from edgesparse_converters.executorch.program import Program

BACKEND = "XnnpackBackend"
_HEADER = struct.Struct("<4s4sHIIIQ")
_WITH_FILTER = ("XNNFullyConnected", "XNNConv2d", "XNNDepthwiseConv2d")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One constant weight of a linear or convolution in a delegate.

    Attributes:
        node: ``XNNFullyConnected``, ``XNNConv2d`` or ``XNNDepthwiseConv2d``.
        datatype: ``qbint4``, ``qcint4``, ``qcint8`` or ``fp32``.
        shape: As the graph says.
        values: int8 codes [N, K], or float32 weights of ``shape``.
        scales: float32 [N, groups]; [N, 0] for float32 weights.
    """

    node: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[np.int8] | NDArray[np.float32] = field(repr=False)
    scales: NDArray[np.float32] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        width = 2 if self.datatype == "qbint4" else 4
        codes = self.values.nbytes // 2 if self.datatype.endswith("int4") else self.values.nbytes
        return codes + width * self.scales.size


def graphs(program: Program, method: str) -> Iterator[dict[str, Any]]:
    """Yield the graph of every XNNPACK delegate of a method, as JSON values.

    Raises:
        SourceError: A delegate is damaged.
    """
    for backend, data in program.delegates(method):
        if backend != BACKEND:
            continue
        try:
            _, magic, _, start, size, *_ = _HEADER.unpack_from(data)
            if magic != b"XH00":
                raise ValueError(f"its header is {magic!r}")
            yield to_json(bytes(data[start : start + size]), XNNPACK_SCHEMA)
        except (ValueError, struct.error) as error:
            raise SourceError(
                f"{program.path}: an XNNPACK delegate of {method!r} is damaged: {error}"
            ) from None


def filters(program: Program, method: str) -> Iterator[Filter]:
    """Yield every constant weight in the XNNPACK delegates of a method, in order."""
    for of in filters_by_delegate(program, method):
        yield from of


def filters_by_delegate(program: Program, method: str) -> Iterator[Iterator[Filter]]:
    """Yield the constant weights of every XNNPACK delegate of a method, in order."""
    for graph in graphs(program, method):
        yield _filters(program, graph)


def _filters(program: Program, graph: dict[str, Any]) -> Iterator[Filter]:
    values = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        values[tensor["id_out"]] = (tensor, union.get("quant_params"))
    for node in graph["xnodes"]:
        if node["xnode_union_type"] in _WITH_FILTER:
            tensor, quantization = values[node["xnode_union"]["filter_id"]]
            if tensor["constant_buffer_idx"]:
                yield _filter(program, graph, node["xnode_union_type"], tensor, quantization)


def _filter(
    program: Program,
    graph: dict[str, Any],
    node: str,
    tensor: dict[str, Any],
    quantization: dict[str, Any] | None,
) -> Filter:
    shape = tuple(tensor["dims"])
    datatype = tensor["datatype"].removeprefix("xnn_datatype_")
    data = _constant(program, graph, tensor["constant_buffer_idx"])
    rows = shape[0]
    scales = np.zeros((rows, 0), np.float32)
    if quantization is not None:
        raw = _constant(program, graph, quantization["scale_buffer_idx"])
        scales = _scales(raw, datatype).reshape(rows, -1)
    values: NDArray[np.int8] | NDArray[np.float32]
    if datatype in ("qbint4", "qcint4"):
        values = _nibbles(data, shape)
    elif datatype == "qcint8":
        values = np.frombuffer(data, np.int8).reshape(shape)
    else:
        values = np.frombuffer(data, np.float32).reshape(shape)
    return Filter(node=node, datatype=datatype, shape=shape, values=values, scales=scales)


def _constant(program: Program, graph: dict[str, Any], index: int) -> memoryview:
    entry = graph["constant_data"][index]
    data = program.named.get(entry["named_key"])
    if data is None or len(data) < entry["size"]:
        raise SourceError(
            f"{program.path}: XNNPACK refers to data {entry['named_key']!r}, which the file does "
            "not hold; it is damaged or its weights are in another file"
        )
    return data[: entry["size"]]


def _scales(raw: memoryview, datatype: str) -> NDArray[np.float32]:
    if datatype != "qbint4":
        return np.frombuffer(raw, np.float32)
    return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _nibbles(data: memoryview, shape: tuple[int, ...]) -> NDArray[np.int8]:
    rows, columns = shape[0], shape[-1]
    packed = np.frombuffer(data, np.uint8).reshape(rows, -1)
    codes = np.empty((rows, 2 * packed.shape[1]), np.int8)
    codes[:, 0::2] = (packed & 15).astype(np.int8) - 8
    codes[:, 1::2] = (packed >> 4).astype(np.int8) - 8
    return codes[:, :columns]
