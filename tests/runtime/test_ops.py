"""The ``edgesparse::`` operators: equal to the decoded weights, traceable, safe to call."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.packed import FORMATS, Codes
from edgesparse.pattern import DENSE, Pattern
from edgesparse.runtime import arguments

NAMES = sorted(name for name in FORMATS if name.startswith(("dense", "bitmask")))


def make(name, shape=(70, 300), group_size=32):
    rng = np.random.default_rng(0)
    bits = FORMATS.get(name).bits
    keep = rng.random(shape) >= (0.0 if name.startswith("dense") else 0.5)
    if bits == 16:
        values = (rng.standard_normal(shape) * keep).astype(np.float16)
        scales, group_size = np.zeros((shape[0], 0), np.float16), 0
    else:
        values = (rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape) * keep).astype(np.int8)
        groups = -(-shape[1] // group_size)
        scales = (rng.integers(128, 256, (shape[0], groups)) / 4096).astype(np.float16)
    codes = Codes(values=values, scales=scales, keep_mask=keep, bits=bits, group_size=group_size)
    return FORMATS.get(name).pack(codes, pattern=DENSE)


def call_linear(x, packed, bias=None):
    a = arguments.packed_arguments(packed)
    return torch.ops.edgesparse.linear(x, a.buffers, a.format, a.shape, a.group_size, bias)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (16,), (17,)])
def test_linear_is_the_decoded_linear(name, lead):
    packed = make(name)
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(*lead, 300, generator=generator), torch.randn(70, generator=generator)
    weight = torch.from_numpy(packed.decode())
    found = call_linear(x, packed, bias)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    magnitude = functional.linear(x.double().abs(), weight.double().abs(), bias.double().abs())
    assert found.shape == (*lead, 70)
    assert torch.all((found - exact).abs() <= 2.0**-23 * 303 * magnitude)


@pytest.mark.parametrize(
    ("name", "pattern"), [("nm4", "2:4"), ("n64", "16:64"), ("column16", "16x1")]
)
def test_structured_layouts_compute_too(name, pattern):
    rng = np.random.default_rng(0)
    keep = np.zeros((32, 256), np.bool_)
    keep[:, ::4] = True  # one of four columns: a mask of each of these patterns
    codes = Codes(
        values=(rng.integers(-8, 8, keep.shape) * keep).astype(np.int8),
        scales=(rng.integers(128, 256, (32, 2)) / 4096).astype(np.float16),
        keep_mask=keep,
        bits=4,
        group_size=128,
    )
    packed = FORMATS.get(name).pack(codes, pattern=Pattern.parse(pattern))
    a = arguments.packed_arguments(packed)
    weight = torch.from_numpy(codes.decode())
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(call_linear(x, packed), functional.linear(x, weight))
    indices = torch.tensor([31, 0])
    found = torch.ops.edgesparse.embedding(indices, a.buffers, a.format, a.shape, a.group_size)
    assert torch.equal(found, weight[indices])


def test_linear_follows_the_type_of_x():
    assert (
        call_linear(torch.zeros(2, 300, dtype=torch.bfloat16), make("dense4")).dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_exact(name):
    packed = make(name)
    a = arguments.packed_arguments(packed)
    indices = torch.tensor([[0, 69], [16, 15]])
    found = torch.ops.edgesparse.embedding(indices, a.buffers, a.format, a.shape, a.group_size)
    assert torch.equal(found, torch.from_numpy(packed.decode())[indices])


def test_embedding_refuses_an_index_outside():
    a = arguments.packed_arguments(make("dense4"))
    with pytest.raises(IndexError):
        torch.ops.edgesparse.embedding(
            torch.tensor([70]), a.buffers, a.format, a.shape, a.group_size
        )


class Packed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.arguments = arguments.packed_arguments(make("bitmask4"))
        for i, buffer in enumerate(self.arguments.buffers):
            self.register_buffer(f"buffer{i}", buffer)

    def forward(self, x, indices):
        a = self.arguments
        buffers = [getattr(self, f"buffer{i}") for i in range(len(a.buffers))]
        rows = torch.ops.edgesparse.embedding(indices, buffers, a.format, a.shape, a.group_size)
        return torch.ops.edgesparse.linear(x + rows, buffers, a.format, a.shape, a.group_size, None)


def test_export_traces_the_packed_operators():
    module = Packed()
    inputs = (torch.randn(3, 300), torch.tensor([1, 2, 69]))
    program = torch.export.export(module, inputs)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"edgesparse.linear.default", "edgesparse.embedding.default"} <= targets
    assert torch.equal(program.module()(*inputs), module(*inputs))


@pytest.mark.parametrize("shape", [(6, 10), (4, 3, 5)])
@pytest.mark.parametrize("group_size", [4, 7, 100])
def test_dequantize_is_the_reference_decoding(shape, group_size):
    packed = make("bitmask4", (shape[0], int(np.prod(shape[1:]))), group_size)
    codes = packed.codes
    arguments = (
        torch.from_numpy(codes.values).reshape(shape),
        torch.from_numpy(codes.keep_mask).reshape(shape),
        torch.from_numpy(codes.scales.astype(np.float32)),
        group_size,
        "w",
    )
    found = torch.ops.edgesparse.dequantize(*arguments)
    assert torch.equal(found, torch.from_numpy(codes.decode()).reshape(shape))
    no_mask = torch.zeros(0, dtype=torch.bool)
    assert torch.equal(
        torch.ops.edgesparse.dequantize(arguments[0], no_mask, *arguments[2:]), found
    )
    torch.library.opcheck(torch.ops.edgesparse.dequantize.default, arguments)


def test_sparse_values_keeps_only_what_the_mask_keeps():
    values = torch.tensor([[1.5, 2.0], [3.0, -4.0]])
    keep = torch.tensor([[True, False], [False, True]])
    expected = torch.tensor([[1.5, 0.0], [0.0, -4.0]])
    assert torch.equal(torch.ops.edgesparse.sparse_values(values, keep, "w"), expected)
    all_kept = torch.ops.edgesparse.sparse_values(values, torch.zeros(0, dtype=torch.bool), "w")
    assert torch.equal(all_kept, values)
    torch.library.opcheck(torch.ops.edgesparse.sparse_values.default, (values, keep, "w"))


def test_hostile_buffers_are_refused():
    a = arguments.packed_arguments(make("bitmask4"))
    x = torch.zeros(1, 300)
    for damaged in (a.buffers[:-1], [], [a.buffers[0] * 0 - 1, *a.buffers[1:]]):
        with pytest.raises(CorruptPack):
            torch.ops.edgesparse.linear(x, damaged, a.format, a.shape, a.group_size, None)
    with pytest.raises(CorruptPack):
        torch.ops.edgesparse.linear(x, a.buffers, a.format, [700, 300], a.group_size, None)


def test_a_checked_pack_is_forgotten_with_its_tensors():
    gc.collect()
    before = len(arguments._opened)
    a = arguments.packed_arguments(make("dense4"))
    torch.ops.edgesparse.linear(torch.zeros(1, 300), a.buffers, a.format, a.shape, a.group_size)
    assert len(arguments._opened) == before + 1
    del a
    gc.collect()
    assert len(arguments._opened) == before


def test_dequantize_shifted_by_hand():
    codes = torch.tensor([[3, -8, 0], [7, 0, 1]], dtype=torch.int8)
    keep = torch.tensor([[True, True, True], [True, False, True]])
    scales = torch.tensor([[0.5, 2.0], [0.25, 1.0]])
    zeros = torch.tensor([[2, -1], [-8, 1]], dtype=torch.int8)
    arguments = (codes, keep, scales, zeros, 2, "w")
    expected = torch.tensor([[0.5, -5.0, 2.0], [3.75, 0.0, 0.0]])
    assert torch.equal(torch.ops.edgesparse.dequantize_shifted(*arguments), expected)
    torch.library.opcheck(torch.ops.edgesparse.dequantize_shifted.default, arguments)


@pytest.mark.parametrize("table_rows", [0, 1, 2])
def test_look_up_by_hand(table_rows):
    indices = torch.tensor([[0, 3], [1, 2]], dtype=torch.int8)
    keep = torch.tensor([[True, True], [False, True]])
    tables = torch.tensor([[-1.0, 0.25, 2.0, 4.0], [8.0, 16.0, 32.0, 64.0]])
    table = tables if table_rows == 1 else tables[:1]
    arguments = (indices, keep, table, table_rows, "w")
    expected = torch.tensor([[-1.0, 4.0], [0.0, 32.0 if table_rows == 1 else 2.0]])
    assert torch.equal(torch.ops.edgesparse.look_up(*arguments), expected)
    torch.library.opcheck(torch.ops.edgesparse.look_up.default, arguments)


@pytest.mark.parametrize("label", ["dense4:affine", "dense4:table:x", "dense4:table:-1"])
def test_a_hostile_format_is_refused(label):
    a = arguments.packed_arguments(make("dense4"))
    with pytest.raises(FormatError):
        torch.ops.edgesparse.linear(torch.zeros(1, 300), a.buffers, label, a.shape, 0, None)
