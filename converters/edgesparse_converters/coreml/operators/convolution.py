"""Convolutions, pooling and resampling in one, two and three dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgesparse_converters.coreml.operators.call import Call, CallError, Operator, within_limits

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def conv(call: Call) -> Tensor:
    """Return the convolution of x with weight, plus bias."""
    x, weight = call.tensor(), call.tensor("weight")
    window = list(weight.shape[2:])
    rank = _rank(window)
    stride = call.integers("strides", [1] * rank)
    dilation = call.integers("dilations", [1] * rank)
    spread = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    x = _padded(x, _padding(call, x.shape[2:], spread, stride), 0.0)
    return _CONV[rank - 1](
        x, weight, call.optional("bias"), stride, 0, dilation, call.integer("groups", 1)
    )


def conv_transpose(call: Call) -> Tensor:
    """Return the transposed convolution of x with weight, cropped to the declared shape."""
    x, weight = call.tensor(), call.tensor("weight")
    window = list(weight.shape[2:])
    rank = _rank(window)
    stride = call.integers("strides", [1] * rank)
    dilation = call.integers("dilations", [1] * rank)
    spread = [
        size * step + taps * gap
        for size, step, taps, gap in zip(x.shape[2:], stride, window, dilation, strict=True)
    ]
    within_limits((x.shape[0], weight.shape[1], call.integer("groups", 1), *spread))
    full = _TRANSPOSED[rank - 1](x, weight, None, stride, 0, 0, call.integer("groups", 1), dilation)
    for i, (before, size) in enumerate(_crops(call, x, full, stride)):
        missing = before + size - full.shape[i + 2]
        if missing > 0:
            full = functional.pad(full, [0, 0] * (rank - 1 - i) + [0, missing])
        full = full.narrow(i + 2, before, size)
    bias = call.optional("bias")
    return full if bias is None else full + bias.reshape(-1, *(1,) * rank)


def _crops(call: Call, x: Tensor, full: Tensor, stride: list[int]) -> list[tuple[int, int]]:
    """Return where each spatial axis of a transposed convolution begins, and its size."""
    kind = call.text("pad_type", "valid")
    wanted = call.integers("output_shape", [])[2:]
    crops = []
    for i, (have, step) in enumerate(zip(full.shape[2:], stride, strict=True)):
        before, after = call.integers("pad")[2 * i : 2 * i + 2] if kind == "custom" else (0, 0)
        size = wanted[i] if wanted else have - before - after
        if kind.startswith("same"):
            size = x.shape[i + 2] * step
            before = max(have - size, 0) // 2
        crops.append((before, size))
    return crops


def max_pool(call: Call) -> Tensor:
    """Return the largest element of each window."""
    x, window, stride = _pooled(call, -torch.inf)
    return _MAX[len(window) - 1](x, window, stride)


def avg_pool(call: Call) -> Tensor:
    """Return the mean of each window, with or without the padding in the count."""
    x, window, stride = _pooled(call, 0.0)
    total = _sums(x, window, stride)
    if not call.flag("exclude_padding_from_average"):
        return total / float(torch.tensor(window).prod())
    ones = torch.ones_like(call.tensor())
    counted, _, _ = _pooled(call, 0.0, ones)
    return total / _sums(counted, window, stride)


def _sums(x: Tensor, window: list[int], stride: list[int]) -> Tensor:
    for i, (size, step) in enumerate(zip(window, stride, strict=True)):
        x = x.unfold(i + 2, size, step).sum(-1)
    return x


def _pooled(
    call: Call, value: float, x: Tensor | None = None
) -> tuple[Tensor, list[int], list[int]]:
    """Return the padded input, window and stride of a pooling."""
    x = call.tensor() if x is None else x
    window = call.integers("kernel_sizes")
    stride = call.integers("strides", [1] * len(window))
    _rank(window)
    pads = _padding(call, x.shape[2:], window, stride)
    if call.flag("ceil_mode"):
        for i, (size, step) in enumerate(zip(window, stride, strict=True)):
            low, high = pads[i]
            over = (x.shape[i + 2] + low + high - size) % step
            pads[i] = (low, high + (step - over) % step)
    return _padded(x, pads, value), window, stride


def _rank(window: list[int]) -> int:
    if not 1 <= len(window) <= 3:
        raise CallError(f"a window of {len(window)} dimensions, expected 1 to 3")
    return len(window)


def _padding(
    call: Call, sizes: torch.Size, window: list[int], stride: list[int]
) -> list[tuple[int, int]]:
    """Return (before, after) for each spatial axis."""
    kind = call.text("pad_type", "valid")
    if kind == "valid":
        return [(0, 0)] * len(window)
    if kind == "custom":
        flat = call.integers("pad")
        return list(zip(flat[::2], flat[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise CallError(f"pad_type {kind!r}")
    pads = []
    for size, width, step in zip(sizes, window, stride, strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        half = total // 2
        pads.append((half, total - half) if kind == "same" else (total - half, half))
    return pads


def _padded(x: Tensor, pads: list[tuple[int, int]], value: float) -> Tensor:
    flat = [size for pair in reversed(pads) for size in pair]
    spatial = [size + sum(pair) for size, pair in zip(x.shape[2:], pads, strict=True)]
    within_limits((*x.shape[:2], *spatial))
    return functional.pad(x, flat, value=value) if any(flat) else x


def upsample_nearest_neighbor(call: Call) -> Tensor:
    """Repeat pixels by the scale of each direction."""
    x = call.tensor()
    height, width = (_scaled(call, x, axis) for axis in ("height", "width"))
    return functional.interpolate(x, (height, width), mode="nearest")


def upsample_bilinear(call: Call) -> Tensor:
    """Interpolate linearly by the scale of each direction."""
    x, align = call.tensor(), call.flag("align_corners", True)
    size = (_scaled(call, x, "height"), _scaled(call, x, "width"))
    if not align and not call.flag("half_pixel_centers", not align):
        raise CallError("upsample_bilinear with neither aligned corners nor pixel centres")
    return functional.interpolate(x, size, mode="bilinear", align_corners=align)


def resize_bilinear(call: Call) -> Tensor:
    """Interpolate linearly to a size."""
    x, mode = call.tensor(), call.text("sampling_mode", "DEFAULT")
    size = (call.integer("target_size_height", 1), call.integer("target_size_width", 1))
    if mode not in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS"):
        raise CallError(f"resize_bilinear sampling mode {mode!r}")
    within_limits((*x.shape[:2], *size))
    align = mode != "UNALIGN_CORNERS"
    return functional.interpolate(x, size, mode="bilinear", align_corners=align)


def resize_nearest_neighbor(call: Call) -> Tensor:
    """Repeat pixels to a size."""
    size = (call.integer("target_size_height"), call.integer("target_size_width"))
    within_limits((*call.tensor().shape[:2], *size))
    return functional.interpolate(call.tensor(), size, mode="nearest")


def _scaled(call: Call, x: Tensor, axis: str) -> int:
    size = x.shape[-2 if axis == "height" else -1]
    scaled = int(size * call.number(f"scale_factor_{axis}", 1.0) + 1e-6)
    within_limits((x.numel(), scaled))
    return scaled


OPERATORS: dict[str, Operator] = {
    function.__name__: function
    for function in (
        conv, conv_transpose, max_pool, avg_pool, upsample_nearest_neighbor, upsample_bilinear,
        resize_bilinear, resize_nearest_neighbor,
    )
}  # fmt: skip
