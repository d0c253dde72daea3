"""A cache of keys and values that our operators read in place, float32 or int8.

``edgesparse::cache_rows`` makes rows of an int8 cache: a token's key or value in one head becomes
its D codes and the float32 scale they share, max |x| / 127, as D + 4 bytes. What is written once is
never rounded again. ``edgesparse::attention`` reads such rows, or float32 ones, where they lie in
the cache, and of these only as many as the mask lets a token look at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticLayer

from edgesparse.errors import Unsupported
from edgesparse_converters.executorch.attention import grouped_attention, use_attention

CACHES = ("float32", "int8")
"""How keys and values are kept between calls."""

CACHED, ROUNDED = "edgesparse_cached", "edgesparse_rounded"

_SCALE_NBYTES = 4
_ATTENTION = "Tensor query, Tensor keys, Tensor values, Tensor mask, float scaling"
_library = torch.library.Library("edgesparse", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    f"attention({_ATTENTION}) -> Tensor",
    f"attention.out({_ATTENTION}, *, Tensor(a!) out) -> Tensor(a!)",
    "cache_rows(Tensor x) -> Tensor",
    "cache_rows.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "cache_rows", "CPU")
def _cache_rows(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 0.0, scale)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    codes = (x * inverse).round().to(torch.int8)
    return torch.cat([codes, scale.contiguous().view(torch.int8)], dim=-1)


@torch.library.register_fake("edgesparse::cache_rows", lib=_library)
def _cache_rows_shape(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] + _SCALE_NBYTES), dtype=torch.int8)


@torch.library.impl(_library, "attention", "CPU")
def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    keys, values = (decode_rows(t) if t.dtype == torch.int8 else t for t in (keys, values))
    return grouped_attention(nn.Module(), query, keys, values, mask, scaling=scaling)[0]


@torch.library.register_fake("edgesparse::attention", lib=_library)
def _attention_shape(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    batch, heads, length, width = query.shape
    return query.new_empty((batch, length, heads, width))


def decode_rows(rows: Tensor) -> Tensor:
    """Return the floats of rows of an int8 cache: float32 ``[..., D]`` of int8 ``[..., D + 4]``."""
    codes, scales = rows[..., :-_SCALE_NBYTES], rows[..., -_SCALE_NBYTES:]
    return codes.to(torch.float32) * scales.contiguous().view(torch.float32)


class ByteLayer(StaticLayer):  # type: ignore[misc]
    """One layer of a static cache that keeps int8 rows."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the rows of new keys and values; return the whole cache as it is kept."""
        rows = torch.ops.edgesparse.cache_rows
        keys, values = super().update(rows(key_states), rows(value_states), *args, **kwargs)
        return keys, values


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_rest: Any,
) -> tuple[Tensor, None]:
    """Return the attention's output [1, T, H, D] over the cache, by our operator.

    Args:
        module: The layer; not used.
        query: [1, H, T, D].
        key: The cache as it is kept, [1, C, S, D] or int8 [1, C, S, D + 4].
        value: Likewise.
        attention_mask: float [1, 1, T, S], 0 or the least float.
        scaling: Of the scores; None is ``D ** -0.5``.

    Raises:
        Unsupported: The model makes no mask.
    """
    if attention_mask is None:
        raise Unsupported("the model attends to its cache without a mask; export without context")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output: Tensor = torch.ops.edgesparse.attention(query, key, value, attention_mask, scale)
    return output, None


def rounded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return ``grouped_attention`` of keys and values as an int8 cache would give them back."""
    rows = torch.ops.edgesparse.cache_rows
    return grouped_attention(
        module, query, decode_rows(rows(key)), decode_rows(rows(value)), *args, **kwargs
    )


def use_cached_attention(model: nn.Module) -> bool:
    """Let a transformers model attend by our operator; False where it has attention of its own."""
    return use_attention(model, CACHED, cached_attention)


def use_rounded_attention(model: nn.Module) -> bool:
    """Let a transformers model attend as over an int8 cache; False where that cannot be."""
    return use_attention(model, ROUNDED, rounded_attention)
