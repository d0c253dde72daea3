"""A causal language model with its keys and values kept in the program, for generation.

Two methods of one program share weights and cache::

    forward(input_ids [1, 1], position [1])        -> logits [1, 1, V]   one token
    prefill(input_ids [1, P], position [1])        -> logits [1, P, V]   P tokens from ``position``

A prompt that is no multiple of P is filled up with any token: what those leave in the cache lies
after the prompt, is never attended to, and is overwritten as generation reaches it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.errors import Unsupported, UsageError
from edgesparse.model import CapturedModel
from edgesparse_converters.executorch.attention import use_grouped_attention
from edgesparse_converters.executorch.caching import ByteLayer, use_cached_attention


class Cached(nn.Module):
    """A transformers model with a static cache as its own buffers.

    Args:
        model: A causal language model of transformers.
        context: Positions the cache has room for.
        cache: How keys and values are kept, one of ``caching.CACHES``.
        stock: Whether only operators of the stock runtime may be used; not with an int8 cache.

    Raises:
        Unsupported: A cache that is not one plain store of keys and values a layer; an int8 cache
            for a model that has attention of its own.
    """

    def __init__(
        self, model: nn.Module, context: int, *, cache: str = "float32", stock: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.cache = _static_cache(model, context)
        if cache == "int8":
            self.cache = _byte_cache(model, context)
        elif stock or not use_cached_attention(model):
            use_grouped_attention(model)
        for i, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys_{i}", layer.keys, persistent=False)
            self.register_buffer(f"values_{i}", layer.values, persistent=False)
            self.register_buffer(f"length_{i}", layer.cumulative_length, persistent=False)

    def forward(self, input_ids: Tensor, position: Tensor) -> Tensor:
        """Return logits ``[1, T, V]`` of tokens ``[1, T]`` that begin at ``position [1]``."""
        for i, layer in enumerate(self.cache.layers):
            # The layer's own attributes would be traced as constants, not as these buffers.
            layer.keys, layer.values = self.get_buffer(f"keys_{i}"), self.get_buffer(f"values_{i}")
            layer.cumulative_length = self.get_buffer(f"length_{i}")
            layer.cumulative_length.copy_(position[0])
        output = self.model(input_ids=input_ids, past_key_values=self.cache, use_cache=True)
        logits: Tensor = output.logits
        return logits

    @property
    def cache_nbytes(self) -> int:
        """Bytes of keys and values."""
        tensors = (t for layer in self.cache.layers for t in (layer.keys, layer.values))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _static_cache(model: nn.Module, context: int) -> Any:
    """Return an empty cache whose tensors exist."""
    from transformers.cache_utils import StaticCache, StaticLayer

    config: Any = model.config
    cache = StaticCache(max_cache_len=context, config=config)
    _use_once(model, cache)
    if any(type(layer) is not StaticLayer for layer in cache.layers):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise Unsupported(
            f"a cache of {', '.join(kinds)} has no fixed form in a program; export without context"
        )
    cache.reset()
    return cache


def _byte_cache(model: nn.Module, context: int) -> Any:
    """Return an empty cache of int8 rows, and let the model read it."""
    from transformers.cache_utils import StaticCache

    if not use_cached_attention(model):
        raise Unsupported("an int8 cache: the model has attention of its own; use cache='float32'")
    config: Any = model.config
    cache = StaticCache(max_cache_len=context, config=config)
    cache.layers = [ByteLayer(context) for _ in cache.layers]
    _use_once(model, cache)
    cache.reset()
    return cache


def _use_once(model: nn.Module, cache: Any) -> None:
    """Read one token: the first use gives every layer tensors of its own shape."""
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, use_cache=True)


def check_context(captured: CapturedModel, context: int, prefill: int) -> None:
    """Refuse lengths the model cannot have.

    Raises:
        UsageError: Not a transformers language model, or lengths out of range.
    """
    if captured.task != "causal-lm" or captured.source.kind != "huggingface":
        raise UsageError("context is for language models from a Hugging Face directory")
    longest = captured.config.get("max_position_embeddings")
    if not 1 <= prefill <= context or (isinstance(longest, int) and context > longest):
        raise UsageError(
            f"context {context} with prefill {prefill}: expected 1 <= prefill <= context <= "
            f"{longest}, the model's own"
        )


def runner_constants(captured: CapturedModel, context: int) -> dict[str, Any]:
    """Return the constants that ExecuTorch's language-model runner asks a program for."""
    config = captured.config
    end = config.get("eos_token_id")
    constants: dict[str, Any] = {
        "get_max_seq_len": 1,  # tokens a call of forward takes
        "get_max_context_len": context,
        "get_vocab_size": config.get("vocab_size"),
        "get_bos_id": config.get("bos_token_id"),
        "get_n_layers": config.get("num_hidden_layers"),
        "get_eos_ids": end if isinstance(end, list) or end is None else [end],
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": False,
    }
    return {name: value for name, value in constants.items() if value is not None}
