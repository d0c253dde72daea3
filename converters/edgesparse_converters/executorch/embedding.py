"""Embeddings through ExecuTorch's own quantized kernels, with exactly our codes and scales.

``quantized_decomposed::embedding_4bit`` takes two codes a byte, even column in the high nibble,
each plus 8; ``embedding_byte`` takes int8 codes. Scales are [N, K / group].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgesparse.packed import Codes
from edgesparse_converters.executorch.quiet import quiet


def pack_nibbles(values: Tensor) -> Tensor:
    """Return int8 codes ``[N, K]`` in [-8, 7], K even, as uint8 ``[N, K / 2]``.

    Example:
        >>> pack_nibbles(torch.tensor([[-8, 7, 0, 1]], dtype=torch.int8)).tolist()
        [[15, 137]]
    """
    shifted = (values + 8).to(torch.uint8)
    return shifted[:, 0::2] << 4 | shifted[:, 1::2]


class QuantizedEmbedding(nn.Module):
    """A lookup that decodes only the rows it needs.

    Args:
        codes: 2-D codes; group_size divides the columns, or is at least as large.
    """

    def __init__(self, codes: Codes) -> None:
        super().__init__()
        with quiet():  # registers the operators; their package decides where
            import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401

        values = torch.from_numpy(codes.values.copy())
        self.is_byte = codes.bits == 8
        self.register_buffer("codes", values if self.is_byte else pack_nibbles(values))
        self.register_buffer("scales", torch.from_numpy(codes.scales.astype("float32")))

    def forward(self, indices: Tensor) -> Tensor:
        """Return float32 ``[..., K]`` for integer ``indices [...]``."""
        ops = torch.ops.quantized_decomposed
        lookup, limit = (ops.embedding_byte, 128) if self.is_byte else (ops.embedding_4bit, 8)
        rows: Tensor = lookup(self.codes, self.scales, None, -limit, limit - 1, indices)
        return rows
