"""Llama-family models as one compiled step: what ``generate`` runs where a model allows it.

The step reads the packed bytes of the model; only tensors that were kept are held as float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from edgesparse_kernels import _isa, _jit, attention, decoder, tiles
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.gather import room_nbytes
from edgesparse_kernels.matmul import embedding
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesparse.errors import UsageError
from edgesparse.formats.operand import open_matrix
from edgesparse.runtime.llama import read_weights, shape_of

Floats = NDArray[np.float32]

MAX_THREADS = 256  # more than processors have; each takes room to work in


@dataclass(frozen=True, kw_only=True)
class FusedOptions:
    """How a fused step computes.

    Attributes:
        activations: INT16, which is nearly exact, or INT8.
        threads: How many threads share each product.
        byte_cache: Whether keys and values are kept as int8, a quarter of the memory.
    """

    activations: Activations = Activations.INT16
    threads: int = 1
    byte_cache: bool = False

    def __post_init__(self) -> None:
        if self.activations is Activations.FLOAT32:
            raise UsageError("a compiled step takes INT16 or INT8 activations, found FLOAT32")
        if not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads is {self.threads}, expected 1 to {MAX_THREADS}")

    @classmethod
    def parse(cls, activations: str, *, threads: int, byte_cache: bool) -> FusedOptions:
        """Return options from the word for activations, ``int16`` or ``int8``.

        Raises:
            UsageError: Another word, or a number of threads out of range.
        """
        if activations not in {"int16", "int8"}:
            raise UsageError(f"activations are {activations!r}, expected int16 or int8")
        kind = Activations[activations.upper()]
        return cls(activations=kind, threads=threads, byte_cache=byte_cache)


class FusedStep:
    """Feed new tokens, return the logits of the last; the cache is kept between.

    Args:
        module: What ``build_packed`` returned, without an obstacle.
        capacity: Positions the cache has room for.
        options: How to compute.
    """

    def __init__(self, module: nn.Module, capacity: int, options: FusedOptions) -> None:
        self._options = options
        self._embedding = module.get_submodule("model.embed_tokens")
        self._shape = shape_of(module, capacity, byte_cache=options.byte_cache)
        self._weights, self._held = read_weights(module, self._shape)
        self._cache = _cache(self._shape)
        self._room = self._make_room()
        self._position = 0
        self._logits = np.empty(int(self._weights.matrices[-1, 0]), np.float32)
        self._run = self._compile()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return logits of shape (vocabulary,) after ``tokens``, int64 of shape (1, new).

        Raises:
            IndexError: There is no more room in the cache.
        """
        ids = tokens.reshape(-1).numpy()
        if self._position + len(ids) > self._shape.capacity:
            raise IndexError(
                f"{self._position + len(ids)} positions, room for {self._shape.capacity}"
            )
        embedded = self._embed(ids)
        with _jit.workers(self._options.threads):
            for i, row in enumerate(embedded):
                wanted = self._logits if i + 1 == len(ids) else self._logits[:0]
                self._run(*self._fixed, self._position, self._room, row, wanted)
                self._position += 1
        return torch.from_numpy(self._logits)

    def _compile(self) -> Any:
        own = self._options
        self._fixed = (
            _isa.best(), self._shape, self._weights, self._cache, own.activations.planes,
            own.threads,
        )  # fmt: skip
        run = decoder.step if own.threads == 1 else decoder.step_parallel
        row = np.empty(self._shape.hidden, np.float32)
        return _jit.entry(run, *self._fixed, self._position, self._room, row, self._logits)

    def _embed(self, ids: NDArray[np.int64]) -> Floats:
        """Return the rows of the embedding, float32 [tokens, hidden]."""
        payload: Any = self._embedding._modules.get("weight_payload")
        if payload is None:
            weight: Any = self._embedding.weight
            found: Floats = weight.detach().float().numpy()[ids]
            return found
        rows = np.empty((len(ids), self._shape.hidden), np.float32)
        embedding(ids, self._lookup(payload), out=rows)
        return rows

    def _lookup(self, payload: Any) -> PackedMatrix | StructuredMatrix:
        known: PackedMatrix | StructuredMatrix | None = payload.__dict__.get("_matrix")
        if known is None:
            known = payload.__dict__["_matrix"] = open_matrix(payload.packed)
        return known

    def _make_room(self) -> decoder.Room:
        shape, planes = self._shape, self._options.activations.planes
        matrices, layers = self._weights.matrices, self._weights.layers
        quads, groups = int(matrices[:, 5].max()), int(matrices[:, 4].max())
        inner, experts, met = (int(layers[:, i].max()) for i in (1, 2, 3))
        threads, at_once = self._options.threads, max(3, met)
        scratch = tiles.Scratch(
            digits=np.zeros((at_once, planes * 4 * quads), np.int8),
            scales=np.zeros((at_once, groups), np.float32),
            sums=np.zeros((at_once, planes * groups), np.int32),
            lanes=np.empty((threads, 64 * tiles.CHUNK + 64), np.uint8),
            streams=np.empty((threads, 2, 8), np.int64),
            totals=np.empty((threads, planes + 3, 16), np.int32),
            acc=np.empty((threads, 1, 16), np.float32),
        )
        attended = shape.heads * shape.head_dim
        sizes = {
            "normed": shape.hidden,
            "added": met * shape.hidden,
            "projected": attended + 2 * shape.kv_heads * shape.head_dim,
            "attended": attended,
            "gated": met * 2 * inner,
            "scores": shape.capacity,
            "routed": -(-experts // 16) * 16,
            "shares": met,
        }
        return decoder.Room(
            **{name: np.zeros(size, np.float32) for name, size in sizes.items()},
            chosen=np.zeros((2, met), np.int64),
            rows=np.zeros(at_once, np.int64),
            packed=np.empty((threads, room_nbytes(quads, groups, planes)), np.int8),
            scratch=scratch,
        )


def _cache(shape: attention.Shape) -> attention.Cache:
    each = 1 if shape.byte_cache else 4
    count = each * shape.kv_heads * shape.head_dim * shape.capacity
    scales = (shape.layers, shape.kv_heads, shape.capacity)
    return attention.Cache(
        keys=np.zeros((shape.layers, count), np.uint8),
        values=np.zeros((shape.layers, count), np.uint8),
        key_scales=np.zeros(scales, np.float32),
        value_scales=np.zeros(scales, np.float32),
    )
