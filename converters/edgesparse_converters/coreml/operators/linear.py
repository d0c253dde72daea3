"""Products: linear, matmul, einsum, attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgesparse_converters.coreml.operators.call import Call, Operator, broadcast_within_limits


def linear(call: Call) -> Tensor:
    """Return ``x @ weight.T + bias``."""
    return functional.linear(call.tensor(), call.tensor("weight"), call.optional("bias"))


def matmul(call: Call) -> Tensor:
    """Return ``x @ y``, either transposed in its last two axes first."""
    x, y = call.tensor("x"), call.tensor("y")
    x = x.mT if call.flag("transpose_x") else x
    y = y.mT if call.flag("transpose_y") else y
    if x.ndim > 1 and y.ndim > 1:
        rows, columns = x.shape[-2], y.shape[-1]
        broadcast_within_limits((*x.shape[:-2], rows, columns), (*y.shape[:-2], rows, columns))
    return torch.matmul(x, y)


def einsum(call: Call) -> Tensor:
    """Return Einstein's sum of two tensors."""
    equation, values = call.text("equation"), call.tensors()
    return torch.einsum(equation, *values)


def attention(call: Call) -> Tensor:
    """Return softmax(q kᵀ / √d + mask) v."""
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    mask = call.optional("attn_mask")
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1) @ value


OPERATORS: dict[str, Operator] = {
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
