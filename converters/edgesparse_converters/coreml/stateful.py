"""Language models that keep their keys and values: Core ML state instead of an input that grows.

``Stateful`` runs a transformers language model on ``input_ids`` [1, T] at ``positions`` [T]. The
keys and values of every layer lie in buffers [1, heads, context, head size], which coremltools
turns into state; each call writes T places and attends to all places up to its own. Nothing about
the architecture is assumed: how many layers there are and how large, is found by running the model
once with a cache that only listens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.errors import Unsupported
from edgesparse.model import CapturedModel
from edgesparse.runtime.forward import first_tensor, token_key


@torch.library.custom_op("edgesparse::write_places", mutates_args=())
def _write_places(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """Return the cache with ``new`` at the places from ``start`` on, along axis 2.

    One operator, because coremltools cannot translate torch's own ways to say it (index_copy,
    a slice whose begin is a tensor); it becomes ``slice_update``.
    """
    written = cache.clone()
    begin = int(start)
    written[:, :, begin : begin + new.shape[2]] = new
    return written


@_write_places.register_fake
def _write_places_shape(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    return torch.empty_like(cache)


class Stateful(nn.Module):
    """A language model with its cache inside.

    Args:
        module: The model as captured.
        captured: Where it came from.
        context: Places of the cache: prompt and continuation together.

    Raises:
        Unsupported: The model takes no cache from outside, or less context than asked for.
    """

    def __init__(self, module: nn.Module, captured: CapturedModel, context: int) -> None:
        super().__init__()
        self.module, self.context = module, context
        self._key = token_key(captured)
        text = captured.config.get("text_config", captured.config)
        self._sliding = _sliding_window(text)
        longest = text.get("max_position_embeddings")
        if isinstance(longest, int) and context > longest:
            raise Unsupported(
                f"{captured.name}: a context of {context} tokens; the model was made for {longest}"
            )
        shapes = self._listen(captured)
        for index, (key, value) in enumerate(shapes):
            self.register_buffer(f"key_{index}", torch.zeros(1, key[1], context, key[3]))
            self.register_buffer(f"value_{index}", torch.zeros(1, value[1], context, value[3]))

    def forward(self, input_ids: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Return the logits [1, T, vocabulary] of tokens [1, T] at ``positions`` [T]."""
        return {"logits": self._run(input_ids, positions, _Cache(self, positions))}

    def _run(self, tokens: Tensor, positions: Tensor, cache: Any) -> Tensor:
        distance = positions[:, None] - torch.arange(self.context)[None]
        allowed = (distance >= 0)[None, None]
        mask: Any = allowed
        if self._sliding is not None:
            near = allowed & (distance < self._sliding)[None, None]
            mask = {"full_attention": allowed, "sliding_attention": near}
        output = self.module(
            **{self._key: tokens},
            attention_mask=mask,
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=False,
        )
        return first_tensor(output)

    def _listen(self, captured: CapturedModel) -> list[tuple[torch.Size, torch.Size]]:
        """Return the shapes of keys and values of every layer."""
        heard = _Listener(self.context)
        tokens = torch.zeros(1, self.context, dtype=torch.int64)
        try:
            with torch.no_grad():
                self._run(tokens, torch.arange(self.context), heard)
        except (TypeError, AttributeError) as error:
            raise Unsupported(
                f"{captured.name}: takes no key/value cache from outside ({error}); export it "
                "without a context"
            ) from None
        if not heard.shapes or sorted(heard.shapes) != list(range(len(heard.shapes))):
            raise Unsupported(f"{captured.name}: never asks for its key/value cache")
        return [heard.shapes[index] for index in range(len(heard.shapes))]


class _Cache:
    """What the model's attention sees as its cache: writes into the buffers, returns them whole."""

    is_compileable = True
    layers: tuple[()] = ()

    def __init__(self, owner: Stateful, positions: Tensor) -> None:
        self._owner, self._positions = owner, positions

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values at their positions; return all of the layer's."""
        buffers = [getattr(self._owner, f"{kind}_{layer}") for kind in ("key", "value")]
        start = self._positions[:1]
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer.copy_(torch.ops.edgesparse.write_places(buffer, new, start))
        return buffers[0], buffers[1]

    def get_seq_length(self, _: int = 0) -> int:
        """Return 0: positions are given, never counted."""
        return 0


class _Listener(_Cache):
    """A cache that keeps nothing and remembers the shapes it was given."""

    def __init__(self, context: int) -> None:
        self.shapes: dict[int, tuple[torch.Size, torch.Size]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Remember the shapes."""
        self.shapes[layer] = (key.shape, value.shape)
        return key, value


def _sliding_window(config: Any) -> int | None:
    """Return the window of a model some of whose layers see only the nearest tokens."""
    window, kinds = config.get("sliding_window"), config.get("layer_types") or ()
    return window if isinstance(window, int) and "sliding_attention" in kinds else None
