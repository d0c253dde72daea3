"""Operators that move elements without computing: reshape, transpose, concat, slice, pad."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgesparse_converters.coreml.operators.call import Call, CallError, Operator, within_limits


def shape(call: Call) -> Tensor:
    """Return the sizes of x."""
    return torch.tensor(call.tensor().shape, dtype=torch.int64)


def reshape(call: Call) -> Tensor:
    """Reshape; a 0 keeps the size at its place."""
    x, sizes = call.tensor(), call.integers("shape")
    kept = [x.shape[i] if size == 0 and i < x.ndim else size for i, size in enumerate(sizes)]
    return x.reshape(kept)


def transpose(call: Call) -> Tensor:
    """Permute the axes."""
    return call.tensor().permute(call.integers("perm"))


def expand_dims(call: Call) -> Tensor:
    """Insert axes of size 1 at the places they have in the result."""
    x, axes = call.tensor(), call.integers("axes")
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(call: Call) -> Tensor:
    """Remove axes of size 1: those named, or all."""
    x = call.tensor()
    axes = call.integers("axes", [axis for axis, size in enumerate(x.shape) if size == 1])
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        if x.shape[axis] != 1:
            raise CallError(f"axis {axis} of shape {tuple(x.shape)} is not 1")
        x = x.squeeze(axis)
    return x


def concat(call: Call) -> Tensor:
    """Concatenate along an axis, or interleave."""
    values = [value if value.ndim else value.reshape(1) for value in call.tensors()]
    axis = call.integer("axis")
    if not call.flag("interleave"):
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def stack(call: Call) -> Tensor:
    """Stack along a new axis."""
    return torch.stack(call.tensors(), call.integer("axis"))


def split(call: Call) -> tuple[Tensor, ...]:
    """Split along an axis, into equal parts or parts of given sizes."""
    x, axis = call.tensor(), call.integer("axis")
    if "split_sizes" in call:
        return torch.split(x, call.integers("split_sizes"), axis)
    return x.tensor_split(call.integer("num_splits"), axis)


def tile(call: Call) -> Tensor:
    """Repeat along every axis."""
    x, repeats = call.tensor(), call.integers("reps")
    within_limits((x.numel(), *repeats))
    return x.repeat(repeats)


def reverse(call: Call) -> Tensor:
    """Reverse the axes named, or all."""
    x = call.tensor()
    return x.flip(call.integers("axes", list(range(x.ndim))))


def slice_index(call: Call, shape: torch.Size) -> tuple[Tensor | int, ...]:
    """Return the index of a slice with begin, end, stride and masks, one entry an axis."""
    rank = len(shape)
    begin, end = call.integers("begin"), call.integers("end")
    stride = call.integers("stride", [1] * rank)
    no_begin, no_end = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    single = call.flags("squeeze_mask", rank)
    if not len(begin) == len(end) == len(stride) == rank:
        raise CallError(f"a slice of {len(begin)} axes of a tensor of {rank}")
    index: list[Tensor | int] = []
    for axis, size in enumerate(shape):
        if single[axis]:
            index.append(begin[axis])
            continue
        low = None if no_begin[axis] else begin[axis]
        high = None if no_end[axis] else end[axis]
        chosen = range(size)[low : high : stride[axis]]
        index.append(torch.arange(chosen.start, chosen.stop, chosen.step)[: len(chosen)])
    return tuple(index)


def slice_by_index(call: Call) -> Tensor:
    """Take a slice; axes of the squeeze mask disappear."""
    return _take(call.tensor(), slice_index(call, call.tensor().shape))


def slice_update(call: Call) -> Tensor:
    """Return x with a slice of it replaced."""
    x = call.tensor().clone()
    index = slice_index(call, x.shape)
    positions = [torch.tensor([i]) if isinstance(i, int) else i for i in index]
    target = [len(position) for position in positions]
    x[torch.meshgrid(*positions, indexing="ij")] = call.tensor("update").reshape(target)
    return x


def slice_by_size(call: Call) -> Tensor:
    """Take a slice of given begin and size; size -1 reaches to the end."""
    x = call.tensor()
    for axis, (begin, size) in enumerate(
        zip(call.integers("begin"), call.integers("size"), strict=True)
    ):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def pad(call: Call) -> Tensor:
    """Pad the last axes, with a constant, by reflection or by repeating the edge."""
    x, mode = call.tensor(), call.text("mode", "constant")
    pairs = call.tensor("pad").reshape(-1, 2).tolist()
    flat = [int(size) for pair in reversed(pairs) for size in pair]
    grown = [
        size + sum(pair) for size, pair in zip(x.shape[x.ndim - len(pairs) :], pairs, strict=True)
    ]
    within_limits((*x.shape[: x.ndim - len(pairs)], *grown))
    if mode == "constant":
        return functional.pad(x, flat, value=call.number("constant_val", 0.0))
    if mode not in ("reflect", "replicate"):
        raise CallError(f"pad mode {mode!r}")
    for axis, (low, high) in enumerate(pairs, start=x.ndim - len(pairs)):
        columns = np.arange(x.shape[axis])
        kind: Literal["edge", "reflect"] = "edge" if mode == "replicate" else "reflect"
        spread = np.pad(columns, [(int(low), int(high))], kind)
        x = x.index_select(axis, torch.from_numpy(spread))
    return x


def fill(call: Call) -> Tensor:
    """Return a tensor full of one value."""
    value = call.tensor("value") if "value" in call else torch.zeros(())
    sizes = call.integers("shape")
    within_limits(sizes)
    return value.reshape(()).expand(sizes).clone()


def fill_like(call: Call) -> Tensor:
    """Return a tensor of the reference's shape full of one value."""
    value = call.tensor("value") if "value" in call else torch.zeros(())
    return value.reshape(()).expand(call.tensor("ref_tensor").shape).clone()


def range_1d(call: Call) -> Tensor:
    """Return start, start + step, … below end."""
    start, end, step = (call.tensor(name).reshape(()) for name in ("start", "end", "step"))
    if step == 0:
        raise CallError("a range with step 0")
    within_limits((max(0, int((end - start) / step)),))
    return torch.arange(start.item(), end.item(), step.item())


def band_part(call: Call) -> Tensor:
    """Return x with what is outside the band around the diagonal set to 0."""
    x = call.tensor()
    row = torch.arange(x.shape[-2])[:, None]
    column = torch.arange(x.shape[-1])[None]
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)
    inside = ((lower < 0) | (row - column <= lower)) & ((upper < 0) | (column - row <= upper))
    return torch.where(inside, x, torch.zeros((), dtype=x.dtype))


def pixel_shuffle(call: Call) -> Tensor:
    """Turn channels into pixels."""
    return functional.pixel_shuffle(call.tensor(), call.integer("upscale_factor"))


def pixel_unshuffle(call: Call) -> Tensor:
    """Turn pixels into channels."""
    return functional.pixel_unshuffle(call.tensor(), call.integer("downscale_factor"))


def _take(x: Tensor, index: tuple[Tensor | int, ...]) -> Tensor:
    """Index axis by axis, from the last, so that an integer may remove its axis."""
    for axis in reversed(range(len(index))):
        at = index[axis]
        x = x.select(axis, at) if isinstance(at, int) else x.index_select(axis, at)
    return x


OPERATORS: dict[str, Operator] = {
    function.__name__: function
    for function in (
        shape, reshape, transpose, expand_dims, squeeze, concat, stack, split, tile, reverse,
        slice_by_index, slice_update, slice_by_size, pad, fill, fill_like, range_1d, band_part,
        pixel_shuffle, pixel_unshuffle,
    )
}  # fmt: skip
