"""The arithmetic of the program's linear layers, in torch: what its results are compared with.

XNNPACK, 8-bit dynamic activations (``qd8``): every row x is quantized on its own, asymmetric::

    lo = min(0, min x)   hi = max(0, max x)   s = 255 / (hi - lo)   (1 when hi = lo)
    z  = round(-128 - lo s)  or  round(127 - hi s), whichever end rounds less, within [-128, 127]
    q  = clamp(round(x s) + z, -128, 127)
    y  = (q - z) W' / s + b

Our operators: symmetric, one scale for every group of columns that shares a scale of the weight::

    t = max |x| in the group / R       R = 127 for int8, 32512 for int16
    q = round(x / t)
    y = sum over groups of (q C') (S t) + b

The products are exact integers, so for our operators nothing is left open: the results are the same
bits. XNNPACK's order of float additions is its own; the reference adds in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesparse.errors import UsageError
from edgesparse.packed import Codes, FormatSpec, matrix_shape

ACTIVATIONS = ("int8", "int16", "float32")
"""How activations enter our operators."""

_DIGIT = 256  # of int16 activations: value = 256 high + low
_RANGES = {"int8": 127.0, "int16": 32512.0}


def require_activations(name: str) -> None:
    """Refuse activations that our operators do not take.

    Raises:
        UsageError: They are none of ``ACTIVATIONS``.
    """
    if name not in ACTIVATIONS:
        raise UsageError(f"activations {name!r}: one of {', '.join(ACTIVATIONS)}")


def activations_for(spec: FormatSpec, shape: tuple[int, ...], wanted: str) -> str:
    """Return ``wanted``, or float32 for weights whose kernels have no integer product."""
    quads = spec.group_size % 4 == 0 or spec.group_size >= matrix_shape(shape)[1]
    return wanted if spec.bits != 16 and quads and spec.group_size <= 65536 else "float32"


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize the rows of ``x`` the way XNNPACK does.

    Args:
        x: float32 ``[..., K]``.

    Returns:
        ``q - z`` as float32 integers ``[..., K]`` and ``1 / s`` as float32 ``[..., 1]``.
    """
    if x.numel() == 0:
        return x.clone(), x.new_ones((*x.shape[:-1], 1))
    lo = x.amin(-1, keepdim=True).clamp(max=0)
    hi = x.amax(-1, keepdim=True).clamp(min=0)
    s = torch.where(hi == lo, torch.ones_like(lo), 255 / (hi - lo))
    lower, upper = -128 + lo * s, 127 + hi * s
    z = torch.where(lower + upper > 0, -128 - lo * s, 127 - hi * s).clamp(-128, 127).round()
    q = ((x * s).round() + z).clamp(-128, 127)
    return q - z, 1 / s


class DynamicLinear(nn.Module):
    """A linear layer computed as XNNPACK computes it with 4-bit or 8-bit weights.

    Args:
        weight: float32 ``[N, K]``, the decoded codes.
        bias: float32 ``[N]`` or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 ``[..., N]`` for float32 ``[..., K]``."""
        q, inverse = quantize_rows(x)
        y = (q.double() @ self.weight.double().T) * inverse.double()
        return (y if self.bias is None else y + self.bias.double()).float()


class PackedReference(nn.Module):
    """A linear layer computed as our operators compute it, bit for bit with integer activations.

    Args:
        codes: The weight.
        bias: float32 ``[N]`` or None.
        activations: One of ``ACTIVATIONS``.
    """

    bias: Tensor | None

    def __init__(self, codes: Codes, bias: Tensor | None, activations: str) -> None:
        super().__init__()
        self.codes, self.activations = codes, activations
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 ``[..., N]`` for float32 ``[..., K]``."""
        return packed_linear(x, self.codes, self.bias, self.activations)


def packed_linear(x: Tensor, codes: Codes, bias: Tensor | None, activations: str) -> Tensor:
    """Return float32 ``x @ W.T + bias``, ``[..., N]``, with these activations."""
    rows, columns = matrix_shape(codes.shape)
    if x.shape[-1] != columns:
        raise ValueError(f"x has {x.shape[-1]} columns, the weight {columns}")
    if activations == "float32":
        return functional.linear(x, torch.from_numpy(codes.decode()).reshape(rows, columns), bias)
    flat = x.reshape(-1, columns)
    weight = torch.from_numpy(codes.values.reshape(rows, columns).astype(np.float64))
    scales = torch.from_numpy(codes.scales.astype(np.float32))
    y = x.new_zeros(len(flat), rows)
    for group in range(scales.shape[1]):
        begin = group * codes.group_size
        part = slice(begin, min(begin + codes.group_size, columns))
        digits, scale = _digits(flat[:, part], _RANGES[activations])
        total = _product(digits, weight[:, part], activations)
        y = y + total * (scales[:, group] * scale)
    y = y if bias is None else y + bias
    return y.reshape(*x.shape[:-1], rows)


def _digits(x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Return the integers of one group, float64 ``[M, g]``, and their scale, float32 ``[M, 1]``."""
    scale = x.abs().amax(-1, keepdim=True) / limit
    tiny = scale < torch.finfo(torch.float32).tiny
    inverse = torch.where(tiny, 0.0, 1.0 / torch.where(tiny, 1.0, scale))
    return (x * inverse).round().double(), torch.where(tiny, 0.0, scale)


def _product(digits: Tensor, weight: Tensor, activations: str) -> Tensor:
    """Return the integer sums as float32: rounded once for each plane of digits."""
    if activations == "int8":
        return (digits @ weight.T).float()
    high = torch.floor((digits + _DIGIT // 2) / _DIGIT)
    low = digits - high * _DIGIT
    return (high @ weight.T).float() * float(_DIGIT) + (low @ weight.T).float()
