"""Forms: which constants say exactly what the solver said."""

import numpy as np
import pytest
from edgesparse_converters.coreml.blocks import block_scales, block_shape
from edgesparse_converters.coreml.forming import code_form, value_form
from edgesparse_converters.coreml.forms import Choice, chain, storage


@pytest.mark.parametrize(
    ("shape", "group_size", "expected"),
    [
        ((64, 256), 128, (1, 128)),
        ((64, 256), 256, (1, 256)),
        ((64, 100), 128, (1, 100)),  # one short group is the whole row
        ((64, 300), 128, (1, 4)),  # groups 128 + 128 + 44
        ((8, 32, 3, 3), 144, (1, 16, 3, 3)),  # 16 channels of 9 taps
        ((8, 32, 3, 3), 288, (1, 32, 3, 3)),
        ((8, 4, 3, 3), 8, (1, 1, 1, 1)),  # the runs cut everywhere
        ((8, 6, 4), 8, (1, 2, 4)),
        ((8, 6, 4), 2, (1, 1, 2)),
        ((5,), 8, (1,)),
    ],
)
def test_blocks_are_the_largest_that_no_group_cuts(shape, group_size, expected):
    assert block_shape(shape, group_size) == expected


@pytest.mark.parametrize("shape", [(3, 40), (3, 37), (2, 6, 3, 3), (4, 5, 7), (2, 12, 1, 5), (6,)])
@pytest.mark.parametrize("group_size", [1, 2, 8, 9, 16, 32, 1000])
def test_blocks_spread_again_are_the_scale_of_every_column(shape, group_size):
    columns = int(np.prod(shape[1:]))
    groups = -(-columns // group_size)
    scales = np.arange(1, shape[0] * groups + 1, dtype=np.float32).reshape(shape[0], groups)
    blocks = block_scales(scales, shape, group_size)
    assert blocks.ndim == len(shape)
    spread = blocks
    for axis, size in enumerate(shape):
        assert size % blocks.shape[axis] == 0
        spread = np.repeat(spread, size // blocks.shape[axis], axis=axis)
    by_column = np.repeat(scales, group_size, axis=1)[:, :columns].reshape(shape)
    np.testing.assert_array_equal(spread, by_column)


def test_two_bit_codes_become_indices_into_a_table_of_the_codes():
    codes = np.array([[-2, -1, 0, 1] * 8], np.int8)
    form = code_form(codes, None, np.ones((1, 1), np.float32), group_size=32, bits=2)
    assert form.table.tolist() == [-2, -1, 0, 1]
    assert form.kept.tolist() == [[0, 1, 2, 3] * 8]
    assert form.operations == ("constexpr_blockwise_shift_scale", "constexpr_lut_to_dense")
    assert form.nbytes == 8 + 4 + 2  # 32 indices, four entries, one scale


def test_a_masked_form_keeps_a_kept_zero():
    codes = np.array([[5, 0, 0, -8]], np.int8)
    mask = np.array([[True, True, False, True]])
    form = code_form(codes, mask, np.ones((1, 1), np.float32), group_size=4, bits=4)
    assert form.kept.tolist() == [5, 0, -8]
    assert form.operations == (
        "constexpr_sparse_blockwise_shift_scale",
        "constexpr_sparse_to_dense",
    )


def test_a_full_mask_is_no_mask():
    codes = np.array([[5, 1]], np.int8)
    form = code_form(codes, codes != 9, np.ones((1, 1), np.float32), group_size=2, bits=4)
    assert form.mask is None
    assert form.operations == ("constexpr_blockwise_shift_scale",)


def test_float_values():
    values = np.array([[0.5, 0.0, -2.0]], np.float32)
    masked = value_form(values, values != 0)
    assert masked.operations == ("constexpr_sparse_to_dense",)
    assert masked.kept.tolist() == [0.5, -2.0]
    assert value_form(values, None).operations == ("const",)


def test_four_bits_as_a_table_on_request():
    assert chain(4, masked=True, table=True, late_scale=True) == (
        "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale",
        "constexpr_sparse_to_dense",
    )


@pytest.mark.parametrize(
    ("bits", "kept", "late_scale", "expected"),
    [
        (2, 16, False, (4, False)),  # 2 bits saved 16 times = 4 bytes, a table of 4: no gain
        (2, 17, False, (2, True)),
        (3, 64, False, (4, False)),
        (3, 65, False, (3, True)),
        (3, 6400, True, (3, True)),
        (4, 64, False, (4, False)),
        (8, 64, False, (8, False)),
    ],
)
def test_a_table_is_used_where_it_saves_bytes(bits, kept, late_scale, expected):
    assert storage(bits, kept=kept, blocks=1, choice=Choice(late_scale=late_scale)) == expected
