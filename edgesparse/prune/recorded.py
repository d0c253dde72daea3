"""Loops of small steps over columns: on CUDA recorded once, and replayed.

A sweep over columns is thousands of kernels of microseconds; started one by one from Python they
take several times as long as they run. A CUDA graph of a loop starts them all at once, on copies of
the tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
from torch import Tensor

Loop = Callable[..., None]

_FEWEST = 16  # columns: below, copying in and out takes longer than it saves
_KEPT = 16  # graphs, one for each shape and grid


def run(
    loop: Loop, changed: tuple[Tensor, ...], read: tuple[Tensor, ...], *fixed: Hashable
) -> None:
    """Call ``loop(*changed, *read, *fixed)``, which changes the tensors in ``changed`` in place.

    Args:
        loop: Starts the same operations whatever is in the tensors, and never waits for one.
        changed: Tensors [columns, ...] of one device.
        read: Tensors it only reads.
        fixed: What else decides which operations those are.
    """
    if changed[0].device.type != "cuda" or len(changed[0]) < _FEWEST:
        loop(*changed, *read, *fixed)
        return
    kinds = tuple((tuple(t.shape), t.dtype) for t in (*changed, *read))
    _recorded(loop, kinds, changed[0].device, fixed)(changed, read)


class _Recording:
    """One graph, and the tensors it works on."""

    def __init__(self, loop: Loop, tensors: list[Tensor], fixed: tuple[Hashable, ...]) -> None:
        self._tensors, self._graph = tensors, torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries set up in a first call is not recorded
            loop(*tensors, *fixed)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            loop(*tensors, *fixed)

    def __call__(self, changed: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> None:
        for own, given in zip(self._tensors, (*changed, *read), strict=True):
            own.copy_(given)
        self._graph.replay()
        for own, given in zip(self._tensors, changed, strict=False):
            given.copy_(own)


@lru_cache(maxsize=_KEPT)
def _recorded(
    loop: Loop,
    kinds: tuple[tuple[tuple[int, ...], torch.dtype], ...],
    device: torch.device,
    fixed: tuple[Hashable, ...],
) -> _Recording:
    tensors = [torch.ones(shape, dtype=dtype, device=device) for shape, dtype in kinds]
    return _Recording(loop, tensors, fixed)
