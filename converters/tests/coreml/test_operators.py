"""Operators by family: examples worked by hand, the rest against NumPy."""

import numpy as np
import pytest
import torch
from edgesparse_converters.coreml.operators import OPERATORS, Call, CallError


def call(kind, **arguments):
    def argument(value):
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return value
        return torch.as_tensor(value)

    values = {name: argument(value) for name, value in arguments.items()}
    return OPERATORS[kind](Call(type=kind, arguments=values, outputs=()))


GRID = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("real_div", {"x": [7, -7], "y": [2, 2]}, [3, -3]),
        ("real_div", {"x": [7.0], "y": [2.0]}, [3.5]),
        ("floor_div", {"x": [-7], "y": [2]}, [-4]),
        ("mod", {"x": [-7], "y": [3]}, [2]),
        ("round", {"x": [0.5, 1.5, -2.5]}, [0, 2, -2]),  # halves to even
        ("clip", {"x": [-2.0, 0.5, 3.0], "alpha": -1.0, "beta": 1.0}, [-1, 0.5, 1]),
        ("sigmoid_hard", {"x": [-9.0, 0.0, 9.0], "alpha": 0.2, "beta": 0.5}, [0, 0.5, 1]),
        ("prelu", {"x": [[[-1.0], [-1.0]]], "alpha": [0.5, 0.25]}, [[[-0.5], [-0.25]]]),
        ("select", {"cond": [True, False], "a": [1, 2], "b": [3, 4]}, [1, 4]),
        ("cast", {"x": [1.9, -1.9], "dtype": "int32"}, [1, -1]),
        ("linear", {"x": [[1.0, 2.0]], "weight": [[3.0, 4.0]], "bias": [5.0]}, [[16]]),
        ("matmul", {"x": [[1.0, 2.0]], "y": [[3.0, 4.0]], "transpose_y": True}, [[11]]),
        ("reduce_sum", {"x": GRID, "axes": [-1], "keep_dims": False}, [6, 22, 38]),
        ("reduce_argmax", {"x": GRID, "axis": 1, "keep_dims": True}, [[3], [3], [3]]),
        ("reduce_prod", {"x": [[1.0, 2.0], [3.0, 4.0]], "axes": [0, 1]}, 24),
        ("cumsum", {"x": [1, 2, 3], "axis": 0, "exclusive": True}, [0, 1, 3]),
        ("cumsum", {"x": [1, 2, 3], "axis": 0, "reverse": True}, [6, 5, 3]),
        ("reshape", {"x": GRID, "shape": [0, 2, -1]}, GRID.reshape(3, 2, 2).tolist()),
        ("expand_dims", {"x": [5.0], "axes": [0, -1]}, [[[5]]]),
        ("squeeze", {"x": [[[5.0]]], "axes": [0, 2]}, [5]),
        (
            "concat",
            {"values": [torch.tensor([1, 2]), torch.tensor([3, 4])], "axis": 0, "interleave": True},
            [1, 3, 2, 4],
        ),
        (
            "slice_by_index",
            {"x": GRID, "begin": [1, 3], "end": [9, 0], "stride": [1, -2], "end_mask": [0, 1]},
            [[7, 5], [11, 9]],
        ),
        (
            "slice_by_index",
            {"x": GRID, "begin": [-1, 0], "end": [0, 2], "squeeze_mask": [1, 0]},
            [8, 9],
        ),
        ("slice_by_size", {"x": GRID, "begin": [1, 1], "size": [-1, 2]}, [[5, 6], [9, 10]]),
        (
            "slice_update",
            {"x": [[0, 0], [0, 0]], "update": [7, 8], "begin": [1, 0], "end": [2, 2],
             "squeeze_mask": [1, 0]},
            [[0, 0], [7, 8]],
        ),
        ("pad", {"x": [[1, 2, 3]], "pad": [0, 0, 2, 1], "mode": "reflect"}, [[3, 2, 1, 2, 3, 2]]),
        ("pad", {"x": [[1, 2]], "pad": [1, 1], "mode": "replicate"}, [[1, 1, 2, 2]]),
        ("pad", {"x": [1.0], "pad": [1, 0], "constant_val": 9.0}, [9, 1]),
        ("fill", {"shape": [2], "value": 3}, [3, 3]),
        ("range_1d", {"start": 1, "end": 6, "step": 2}, [1, 3, 5]),
        ("band_part", {"x": [[1, 2], [3, 4]], "lower": -1, "upper": 0}, [[1, 0], [3, 4]]),
        ("gather", {"x": GRID, "indices": [[2, -1]], "axis": 1}, GRID[:, [[2, 3]]].tolist()),
        ("gather", {"x": GRID, "indices": 1, "axis": 0}, [4, 5, 6, 7]),
        ("gather", {"x": [4, 5, 6], "indices": -1, "axis": 0}, 6),
        (
            "gather",
            {"x": [[1, 2], [3, 4]], "indices": [[1], [0]], "axis": 1, "batch_dims": 1},
            [[2], [3]],
        ),
        ("gather_nd", {"x": GRID, "indices": [[0, 1], [2, 3]]}, [1, 11]),
        (
            "gather_along_axis",
            {"x": GRID, "indices": [[3], [0], [-1]], "axis": 1},
            [[3], [4], [11]],
        ),
        (
            "scatter_nd",
            {"data": [1, 1, 1], "indices": [[0], [0]], "updates": [5, 6], "mode": "add"},
            [12, 1, 1],
        ),
        (
            "scatter",
            {"data": [1, 1, 1], "indices": [2], "updates": [5], "axis": 0, "mode": "update"},
            [1, 1, 5],
        ),
        (
            "scatter_along_axis",
            {"data": [[1, 1]], "indices": [[1]], "updates": [[5]], "axis": 1, "mode": "mul"},
            [[1, 5]],
        ),
        ("one_hot", {"indices": [1, 0], "one_hot_vector_size": 2}, [[0, 1], [1, 0]]),
        ("non_zero", {"x": [0, 3, 0, 4]}, [[1], [3]]),
        ("topk", {"x": [1.0, 3.0, 3.0], "k": 2, "axis": 0}, ([3, 3], [1, 2])),  # ties in order
        ("split", {"x": [1, 2, 3], "split_sizes": [1, 2], "axis": 0}, ([1], [2, 3])),
        ("tile", {"x": [1, 2], "reps": [2]}, [1, 2, 1, 2]),
        ("stack", {"values": [torch.tensor([1]), torch.tensor([2])], "axis": 1}, [[1, 2]]),
        ("upsample_nearest_neighbor",
         {"x": [[[[1.0, 2.0]]]], "scale_factor_height": 2.0, "scale_factor_width": 1.0},
         [[[[1, 2], [1, 2]]]]),
    ],
)  # fmt: skip
def test_worked_by_hand(kind, arguments, expected):
    found = call(kind, **arguments)
    parts, wanted = (found, expected) if isinstance(found, tuple) else ((found,), (expected,))
    assert [part.tolist() for part in parts] == [
        torch.as_tensor(value).to(part.dtype).tolist()
        for value, part in zip(wanted, parts, strict=True)
    ]


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu_is_close_to_its_definition(mode):
    from scipy.special import ndtr

    x = np.linspace(-4, 4, 33).astype(np.float32)
    tolerance = {"EXACT": 1e-6, "TANH_APPROXIMATION": 1e-3, "SIGMOID_APPROXIMATION": 2.1e-2}[mode]
    found = call("gelu", x=x, mode=mode).numpy()
    np.testing.assert_allclose(found, x * ndtr(x), atol=tolerance)


def test_layer_norm_over_two_axes():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    gamma = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = call("layer_norm", x=x, axes=[1, 2], gamma=gamma, beta=gamma, epsilon=1e-3).numpy()
    flat = x.reshape(2, 12).astype(np.float64)
    centred = flat - flat.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-3)
    expected = expected.reshape(2, 3, 4) * gamma + gamma
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_with_both_kinds_of_mask():
    generator = np.random.default_rng(1)
    q, k, v = (generator.standard_normal((1, 3, 8)).astype(np.float32) for _ in range(3))
    allowed = np.tril(np.ones((3, 3), bool))
    added = np.where(allowed, 0, -np.inf).astype(np.float32)
    kind = "scaled_dot_product_attention"
    by_bool = call(kind, query=q, key=k, value=v, attn_mask=allowed)
    by_float = call(kind, query=q, key=k, value=v, attn_mask=added)
    np.testing.assert_allclose(by_bool, by_float, rtol=1e-6)
    np.testing.assert_allclose(by_bool[0, 0], v[0, 0], rtol=1e-6)  # the first sees itself only


@pytest.mark.parametrize("padding", ["valid", "same", "same_lower", "custom"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolution_against_a_plain_loop(padding, stride):
    generator = np.random.default_rng(stride)
    x = generator.standard_normal((1, 4, 7)).astype(np.float32)
    weight = generator.standard_normal((6, 2, 3)).astype(np.float32)
    total = max((-(-7 // stride) - 1) * stride + 3 - 7, 0)
    pads = {
        "valid": (0, 0), "custom": (2, 1), "same": (total // 2, total - total // 2),
        "same_lower": (total - total // 2, total // 2),
    }[padding]  # fmt: skip
    found = call(
        "conv", x=x, weight=weight, strides=[stride], pad_type=padding, pad=[2, 1], groups=2
    ).numpy()
    wide = np.pad(x, [(0, 0), (0, 0), pads])
    for o in range(6):
        channels = wide[0, 2 * (o // 3) : 2 * (o // 3) + 2]
        for j in range(found.shape[2]):
            window = channels[:, j * stride : j * stride + 3]
            np.testing.assert_allclose(found[0, o, j], (window * weight[o]).sum(), rtol=1e-4)


def test_transposed_convolution_is_the_adjoint_of_convolution():
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((4, 3, 3, 3)).astype(np.float32)
    x = generator.standard_normal((1, 3, 9, 9)).astype(np.float32)
    y = generator.standard_normal((1, 4, 4, 4)).astype(np.float32)
    arguments = {"weight": weight, "strides": [2, 2], "pad_type": "custom", "pad": [0, 0, 0, 0]}
    forward = call("conv", x=x, **arguments).numpy()
    backward = call("conv_transpose", x=y, **arguments).numpy()
    np.testing.assert_allclose((forward * y).sum(), (x * backward).sum(), rtol=1e-4)


def test_average_with_and_without_the_padding():
    ones = np.ones((1, 1, 3), np.float32)
    arguments = {"x": ones, "kernel_sizes": [3], "strides": [1], "pad_type": "same"}
    third = 2 / 3
    np.testing.assert_allclose(call("avg_pool", **arguments)[0, 0], [third, 1, third])
    found = call("avg_pool", **arguments, exclude_padding_from_average=True)
    assert found.tolist() == [[[1, 1, 1]]]


def test_blocks_of_scales_on_every_axis():
    data = np.ones((4, 6), np.float32)
    scale = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], np.float32)
    found = call("constexpr_blockwise_shift_scale", data=data, scale=scale).numpy()
    np.testing.assert_array_equal(found, np.kron(scale, np.ones((2, 2))))


def test_offsets_are_subtracted_before_scaling():
    found = call("constexpr_blockwise_shift_scale", data=[[5, 6]], scale=[[0.5]], offset=[[4]])
    assert found.tolist() == [[0.5, 1.0]]


def test_the_example_of_two_tables():
    # six rows, two tables of four entries, three rows each
    indices = [[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]]
    lut = np.array([[1, 5, 9, 13], [2, 10, 18, 26]], np.float32).reshape(2, 1, 4, 1)
    expected = [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    assert call("constexpr_lut_to_dense", indices=indices, lut=lut).tolist() == expected


def test_kept_numbers_go_to_their_places():
    mask = [[1, 0, 1], [0, 0, 1]]
    found = call("constexpr_sparse_to_dense", mask=mask, nonzero_data=[5.0, 0.0, 7.0])
    assert found.tolist() == [[5, 0, 0], [0, 0, 7]]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("constexpr_sparse_to_dense", {"mask": [1, 1], "nonzero_data": [1.0]}),
        ("constexpr_lut_to_dense", {"indices": [4], "lut": torch.zeros(1, 4, 1)}),
        ("constexpr_lut_to_dense", {"indices": [0], "lut": torch.zeros(4, 1)}),
        ("constexpr_blockwise_shift_scale", {"data": [1, 2, 3], "scale": [1.0, 1.0]}),
        ("constexpr_blockwise_shift_scale", {"data": [1, 2], "scale": torch.zeros(0)}),
        ("squeeze", {"x": [[1, 2]], "axes": [1]}),
        ("linear", {"x": [[1.0]]}),
        ("gelu", {"x": [1.0], "mode": "OTHER"}),
        ("conv", {"x": torch.zeros(1, 1), "weight": torch.zeros(1, 1)}),
    ],
)
def test_contradictions_are_refused(kind, arguments):
    with pytest.raises(CallError):
        call(kind, **arguments)
