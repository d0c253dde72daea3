"""Operators that choose elements by index: gather, scatter, topk, one_hot."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesparse_converters.coreml.operators.call import Call, CallError, Operator, within_limits


def gather(call: Call) -> Tensor:
    """Take slices along an axis, within each batch if there are batch axes."""
    x, index = call.tensor(), call.index("indices")
    axis, batch = call.integer("axis", 0) % max(x.ndim, 1), call.integer("batch_dims", 0)
    index = torch.where(index < 0, index + x.shape[axis], index)
    if batch == 0:
        sizes = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        within_limits(sizes)
        taken = x.index_select(axis, index.reshape(-1))
        return taken.reshape(sizes)
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_index = index.reshape(-1, *index.shape[batch:])
    rows = [
        row.index_select(axis - batch, at.reshape(-1)).reshape(
            (*row.shape[: axis - batch], *at.shape, *row.shape[axis - batch + 1 :])
        )
        for row, at in zip(flat_x, flat_index, strict=True)
    ]
    return torch.stack(rows).reshape((*x.shape[:batch], *rows[0].shape))


def gather_along_axis(call: Call) -> Tensor:
    """Take one element for each index, along an axis."""
    x, index, axis = call.tensor(), call.index("indices"), call.integer("axis", 0)
    return torch.take_along_dim(x, torch.where(index < 0, index + x.shape[axis], index), axis)


def gather_nd(call: Call) -> Tensor:
    """Take the slices whose positions lie along the last axis of the indices."""
    x, index, batch = call.tensor(), call.index("indices"), call.integer("batch_dims", 0)
    if batch == 0:
        return x[tuple(index.movedim(-1, 0))]
    flat_x = x.reshape(-1, *x.shape[batch:])
    flat_index = index.reshape(-1, *index.shape[batch:])
    rows = [row[tuple(at.movedim(-1, 0))] for row, at in zip(flat_x, flat_index, strict=True)]
    return torch.stack(rows).reshape((*x.shape[:batch], *rows[0].shape))


def scatter_nd(call: Call) -> Tensor:
    """Combine updates into the slices whose positions lie along the last axis of the indices."""
    data, index = call.tensor("data").clone(), call.index("indices")
    return _combine(data, tuple(index.movedim(-1, 0)), call)


def scatter(call: Call) -> Tensor:
    """Combine updates into slices along an axis."""
    data, index = call.tensor("data").clone(), call.index("indices")
    axis = call.integer("axis", 0) % data.ndim
    return _combine(data, (*(slice(None),) * axis, index), call)


def scatter_along_axis(call: Call) -> Tensor:
    """Combine one update for each index, along an axis."""
    data, index = call.tensor("data").clone(), call.index("indices")
    axis = call.integer("axis", 0) % data.ndim
    grid = list(torch.meshgrid(*(torch.arange(size) for size in index.shape), indexing="ij"))
    grid[axis] = index
    return _combine(data, tuple(grid), call)


def _combine(data: Tensor, index: tuple[Tensor | slice, ...], call: Call) -> Tensor:
    """Put, add, multiply, … the updates into ``data`` at ``index``."""
    updates, mode = call.tensor("updates"), call.text("mode", "add")
    if mode == "update":
        data[index] = updates.to(data.dtype)
        return data
    flat = torch.arange(data.numel()).reshape(data.shape)[index].reshape(-1)
    values = updates.to(data.dtype).reshape(-1)
    if mode == "sub":
        mode, values = "add", -values
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    if mode not in names:
        raise CallError(f"scatter mode {mode!r}")
    result = data.reshape(-1).scatter_reduce(0, flat, values, names[mode])
    return result.reshape(data.shape)


def topk(call: Call) -> tuple[Tensor, Tensor]:
    """Return the k largest (or smallest) along an axis and where they are."""
    x, axis = call.tensor(), call.integer("axis", -1)
    order = _order(call, x, axis)
    index = order.narrow(axis, 0, call.integer("k", 1))
    return torch.take_along_dim(x, index, axis), index


def argsort(call: Call) -> Tensor:
    """Return the order of the elements along an axis, largest first unless ascending."""
    return _order(call, call.tensor(), call.integer("axis", -1))


def _order(call: Call, x: Tensor, axis: int) -> Tensor:
    descending = not call.flag("ascending")
    return torch.sort(x, dim=axis, descending=descending, stable=True).indices


def one_hot(call: Call) -> Tensor:
    """Return a new axis that is on at the index and off elsewhere."""
    index, size = call.index("indices"), call.integer("one_hot_vector_size")
    within_limits((index.numel(), size))
    hot = index[..., None] == torch.arange(size)
    on = call.tensor("on_value") if "on_value" in call else torch.ones((), dtype=torch.int64)
    off = call.tensor("off_value") if "off_value" in call else torch.zeros((), dtype=on.dtype)
    return torch.where(hot, on.reshape(()), off.reshape(())).movedim(-1, call.integer("axis", -1))


def non_zero(call: Call) -> Tensor:
    """Return the positions of the elements that are not zero, one row each."""
    return torch.nonzero(call.tensor())


OPERATORS: dict[str, Operator] = {
    function.__name__: function
    for function in (
        gather, gather_along_axis, gather_nd, scatter, scatter_along_axis, scatter_nd, topk,
        argsort, one_hot, non_zero,
    )
}  # fmt: skip
