"""XNNPACK's arithmetic for linears with 8-bit dynamic activations, in torch.

Every row x of the input is quantized on its own, asymmetric, to int8 (``qd8``)::

    lo = min(0, min x)   hi = max(0, max x)   s = 255 / (hi - lo)   (1 when hi = lo)
    z  = round(-128 - lo s)  or  round(127 - hi s), whichever end rounds less, within [-128, 127]
    q  = clamp(round(x s) + z, -128, 127)
    y  = (q - z) W' / s + b

The products are exact integers times the scales of W, so only the order of float additions is
left open: the reference adds in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize the rows of ``x`` the way XNNPACK does.

    Args:
        x: float32 ``[..., K]``.

    Returns:
        ``q - z`` as float32 integers ``[..., K]`` and ``1 / s`` as float32 ``[..., 1]``.
    """
    if x.shape[-1] == 0 or x.numel() == 0:
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
