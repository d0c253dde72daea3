"""The values everything hangs on: specs, codes, packed tensors."""

import copy

import numpy as np
import pytest

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.packed import Codes, FormatSpec, PackedTensor, matrix_shape
from edgesparse.pattern import DENSE


def codes(**changes):
    fields = {
        "values": np.array([[1, -8, 0], [7, 0, 2]], np.int8),
        "scales": np.array([[0.5, 2.0], [1.0, 0.25]], np.float16),
        "keep_mask": np.array([[True, True, False], [True, True, True]]),
        "bits": 4,
        "group_size": 2,
    }
    return Codes(**{**fields, **changes})


def spec(**changes):
    fields = {
        "name": "dense4", "version": 1, "bits": 4, "group_size": 2, "pattern": DENSE,
        "scale_dtype": "float16",
    }  # fmt: skip
    return FormatSpec(**{**fields, **changes})


def test_a_weight_is_a_matrix_of_first_dimension_by_the_rest():
    assert matrix_shape((4, 3, 2, 2)) == (4, 12)
    assert matrix_shape((5,)) == (5, 1)


class TestCodes:
    def test_decode_worked_by_hand(self):
        # Row 0: 1·0.5, -8·0.5, 0·2; row 1: 7·1, 0·1, 2·0.25, the last group one column short.
        expected = np.array([[0.5, -4.0, 0.0], [7.0, 0.0, 0.5]], np.float32)
        decoded = codes().decode()
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, expected)

    def test_float16_values_decode_to_themselves(self):
        values = np.array([[0.1, 0.0], [-3.5, 6e-8]], np.float16)
        weight = codes(
            values=values, scales=np.zeros((2, 0), np.float16), keep_mask=values != 0, bits=16,
            group_size=0,
        )  # fmt: skip
        np.testing.assert_array_equal(weight.decode(), values.astype(np.float32))

    def test_sparsity_counts_the_mask_not_the_zeros(self):
        assert codes().sparsity == pytest.approx(1 / 6)

    def test_convolutions_keep_their_shape(self):
        weight = codes(
            values=np.ones((2, 3, 2, 2), np.int8), scales=np.ones((2, 3), np.float16),
            keep_mask=np.ones((2, 3, 2, 2), np.bool_), group_size=4,
        )  # fmt: skip
        assert weight.decode().shape == (2, 3, 2, 2)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"values": np.array([[1, -9, 0], [7, 0, 2]], np.int8)}, "exceed 4 bits"),
            ({"values": np.array([[1, 8, 0], [7, 0, 2]], np.int8)}, "exceed 4 bits"),
            ({"values": np.array([[1, -8, 3], [7, 0, 2]], np.int8)}, "removed weight"),
            ({"values": np.zeros((2, 3), np.int16)}, "dtype int16"),
            ({"scales": np.ones((2, 2), np.float32)}, "scales float32"),
            ({"scales": np.ones((2, 3), np.float16)}, "expected scales"),
            ({"scales": np.array([[0, 1], [1, 1]], np.float16)}, "finite and positive"),
            ({"scales": np.array([[np.inf, 1], [1, 1]], np.float16)}, "finite and positive"),
            ({"scales": np.array([[np.nan, 1], [1, 1]], np.float16)}, "finite and positive"),
            ({"keep_mask": np.ones((3, 2), np.bool_)}, "mask like the"),
            ({"bits": 16}, "expected float16"),
        ],
    )
    def test_invariants_are_checked_when_built(self, changes, reason):
        with pytest.raises(FormatError, match=reason):
            codes(**changes)


class TestSpec:
    def test_the_last_group_may_be_short(self):
        assert spec(group_size=128).groups(300) == 3
        assert spec(name="bitmask16", bits=16, group_size=0).groups(300) == 0

    @pytest.mark.parametrize(
        "changes", [{"bits": 5}, {"bits": 16}, {"group_size": 0}, {"group_size": -8}]
    )
    def test_contradictions_are_refused(self, changes):
        with pytest.raises(FormatError):
            spec(**changes)


class TestPackedTensor:
    def packed(self):
        buffers = {"codes": np.arange(64, dtype=np.uint8), "scales": np.ones(32, np.float16)}
        return PackedTensor(spec=spec(), shape=(2, 3), buffers=buffers), buffers

    def test_buffers_are_read_only_and_shared(self):
        packed, buffers = self.packed()
        with pytest.raises(ValueError, match="read-only"):
            packed.buffers["codes"][0] = 1
        buffers["codes"][0] = 9
        assert packed.buffers["codes"][0] == 9
        with pytest.raises(TypeError):
            packed.buffers["codes"] = buffers["codes"]

    def test_bytes_are_those_of_the_buffers(self):
        assert self.packed()[0].nbytes == 128

    def test_a_copy_is_the_same_value(self):
        packed, _ = self.packed()
        assert copy.deepcopy(packed) is packed

    def test_require_names_what_is_damaged(self):
        packed, _ = self.packed()
        assert packed.require("codes", np.uint8) is packed.buffers["codes"]
        with pytest.raises(CorruptPack, match=r"'mask' .* found nothing"):
            packed.require("mask", np.uint64)
        with pytest.raises(CorruptPack, match="found float16"):
            packed.require("scales", np.float32)
