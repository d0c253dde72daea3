"""Llama-family models as one compiled step: what ``generate`` runs where a model allows it.

The step reads the packed bytes of the model; only tensors that were kept are held as float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from edgesparse_kernels import _isa, _jit, attention, calls, decoder
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.crew import Crew
from edgesparse_kernels.gather import room_nbytes
from edgesparse_kernels.layout import empty
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
        threads: How many threads share each product, the heads and the gated units.
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
        self._position = 0
        self._logits = np.empty(int(self._weights.matrices[-1, 0]), np.float32)
        self._crew = Crew(options.threads, self._compile)

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
        for i, row in enumerate(embedded):
            wanted = self._logits if i + 1 == len(ids) else self._logits[:0]
            self._crew(self._position, row, wanted)
            self._position += 1
        return torch.from_numpy(self._logits)

    def _compile(self, meeting: int) -> Callable[..., int]:
        """Return the step of a thread; it knows nothing of ``self``, which its threads outlive."""
        threads, planes = self._options.threads, self._options.activations.planes
        fixed = (_isa.best(), self._shape, self._weights, self._cache, planes)
        places = [decoder.Place(thread, threads, meeting) for thread in range(threads)]
        rooms, row = self._rooms(), np.empty(self._shape.hidden, np.float32)
        compiled = _jit.entry(decoder.step, *fixed, places[0], 0, 0, rooms[0], row, self._logits)

        def step(thread: int, turn: int, position: int, row: Floats, logits: Floats) -> int:
            own = places[thread], turn, position, rooms[thread]
            next_turn: int = compiled(*fixed, *own, row, logits)
            return next_turn

        return step

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

    def _rooms(self) -> list[decoder.Room]:
        """Return the room of each thread."""
        first = self._room()
        shared = {name: getattr(first, name) for name in decoder.SHARED}
        others = range(1, self._options.threads)
        return [first, *(self._room()._replace(**shared) for _ in others)]

    def _room(self) -> decoder.Room:
        shape, layers = self._shape, self._weights.layers
        inner, experts, met = (int(layers[:, i].max()) for i in (1, 2, 3))
        attended, at_once = shape.heads * shape.head_dim, max(3, met)
        return decoder.Room(
            projected=_floats(attended + 2 * shape.kv_heads * shape.head_dim),
            attended=_floats(attended),
            added=_floats(met * shape.hidden),
            gated=_floats(met * 2 * inner),
            hidden=_floats(shape.hidden),
            normed=_floats(shape.hidden),
            scores=_floats(shape.capacity),
            routed=_floats(-(-experts // 16) * 16),
            shares=_floats(met),
            chosen=np.zeros((2, met), np.int64),
            rows=np.zeros(at_once, np.int64),
            **self._for_products(at_once),
        )

    def _for_products(self, at_once: int) -> dict[str, Any]:
        """Return what a thread needs for products of ``at_once`` rows of digits, one by one."""
        planes, matrices = self._options.activations.planes, self._weights.matrices
        quads, groups = int(matrices[:, 5].max()), int(matrices[:, 4].max())
        return {
            "packed": empty((room_nbytes(quads, groups, planes),), np.int8),
            "scratch": calls.make_scratch(quads, groups, planes, at_once, 1),
        }


def _floats(count: int) -> Floats:
    """Return zeros that have their cache lines to themselves."""
    found: Floats = empty((count,), np.float32)
    found[:] = 0
    return found


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
