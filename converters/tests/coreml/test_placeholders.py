"""Weights written one by one: the same file, without ever holding them all."""

import math

import numpy as np
import pytest
import torch
from edgesparse_converters.coreml.blob import TYPES, pack, unpack
from edgesparse_converters.coreml.export import export
from edgesparse_converters.coreml.forming import code_form
from edgesparse_converters.coreml.options import Options
from edgesparse_converters.coreml.placeholders import hollow, hollow_mask, is_hollow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgesparse as es

FILES = ("Data/com.apple.CoreML/weights/weight.bin", "Data/com.apple.CoreML/model.mlmodel")


class Stack(nn.Module):
    """Two equal layers, two of one shape, a convolution, and one too small for a placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, 96)
        self.again, self.third = nn.Linear(96, 96), nn.Linear(96, 64)
        self.small = nn.Linear(4, 32)
        self.conv = nn.Conv1d(64, 33, 3)
        self.again.weight = nn.Parameter(self.second.weight.detach().clone())

    def forward(self, x):
        x = self.again(torch.relu(self.second(torch.relu(self.first(x)))))
        x = self.small(self.third(x).reshape(-1, 64, 4)[:, :16])
        return self.conv(x.reshape(1, 64, -1))


@pytest.fixture(scope="module")
def stack() -> es.CapturedModel:
    torch.manual_seed(0)
    return es.load(Stack().eval(), example_inputs={"x": torch.randn(16, 64)})


@pytest.mark.parametrize(
    ("bits", "sparsity", "tables"),
    [(4, 0.5, False), (4, 0.5, True), (4, 0.0, False), (2, 0.5, False), (3, 0.0, False),
     (8, 0.5, False), (16, 0.5, False)],
)  # fmt: skip
def test_streamed_files_are_those_coremltools_writes(
    stack, compressed, tmp_path, bits, sparsity, tables
):
    small = compressed(stack, bits=bits, sparsity=sparsity)
    options = Options(tables=tables)
    whole = export(small, tmp_path / "whole.mlpackage", options, streamed=False)
    streamed = export(small, tmp_path / "streamed.mlpackage", options)
    for file in FILES:
        assert (streamed.path / file).read_bytes() == (whole.path / file).read_bytes()
    assert streamed.lowering == whole.lowering
    assert streamed.notes == whole.notes


@pytest.mark.parametrize(("sparsity", "nbytes_per_weight"), [(0.5, 0.377), (0.75, 0.252)])
def test_a_weight_takes_its_mask_its_codes_and_a_scale_for_each_row(
    compressed, tmp_path, sparsity, nbytes_per_weight
):
    """(1 + 4 · kept) bits, 2 bytes a row, and as much for the zero bias that coremltools adds."""
    torch.manual_seed(0)
    layer = nn.Linear(2048, 2048, bias=False).eval()
    captured = es.load(layer, example_inputs={"input": torch.randn(1, 2048)})
    small = compressed(captured, sparsity=sparsity, group_size=0)
    artifact = export(small, tmp_path / "m.mlpackage", Options())
    found = (artifact.path / FILES[0]).stat().st_size / 2048**2
    assert found == pytest.approx(nbytes_per_weight, rel=5e-3)


def test_placeholders_take_no_memory():
    generator = np.random.default_rng(0)
    codes = generator.integers(-8, 8, (300, 700)).astype(np.int8)
    mask = generator.random((300, 700)) < 0.4
    form = code_form(codes * mask, mask, np.ones((300, 1), np.float32), group_size=700, bits=4)
    empty = hollow(form)
    assert is_hollow(empty)
    assert not is_hollow(form)
    assert empty.kept.shape == form.kept.shape
    assert empty.nbytes == form.nbytes
    assert np.count_nonzero(empty.mask) == np.count_nonzero(mask)
    assert memory(empty.mask) + memory(empty.kept) <= 300 + 700


def memory(array: np.ndarray) -> int:
    """Return the bytes an array reads from."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return high - low


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.data())
def test_a_hollow_mask_has_every_count(shape, data):
    count = data.draw(st.integers(0, math.prod(shape)))
    mask = hollow_mask(tuple(shape), count)
    assert mask.shape == tuple(shape)
    assert np.count_nonzero(mask) == count


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 64, 65])
def test_packing_is_the_inverse_of_reading(name, count):
    generator = np.random.default_rng(count)
    bits = TYPES[name].bits
    if name.startswith("float"):
        values = generator.standard_normal(count).astype(TYPES[name].dtype)
    else:
        low = -(1 << (bits - 1)) if name.startswith("int") else 0
        values = generator.integers(low, low + (1 << bits), count).astype(TYPES[name].dtype)
    np.testing.assert_array_equal(unpack(memoryview(pack(values, name)), name, count), values)
