"""Loss and gradients of one batch, on CUDA recorded once and replayed.

A step of a small model is thousands of small kernels; started one by one from Python they take
several times as long as they run. A CUDA graph starts them all at once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

_WARM_UPS = 3


class Backward:
    """Adds the gradients of ``loss(batch)`` to the parameters and returns the loss, detached."""

    def __init__(
        self,
        loss: Callable[[Mapping[str, Tensor]], Tensor],
        device: torch.device,
        *,
        records: bool = True,
    ) -> None:
        self._loss, self._device = loss, device
        self._eager_runs = 0
        self._capture = device.type == "cuda" and records
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._result = torch.zeros(())

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run forwards and backwards; every batch has to have the shapes of the first."""
        if self._graph is None and self._capture and self._eager_runs >= _WARM_UPS:
            self._record(batch)
        if self._graph is None:
            self._eager_runs += 1
            return self._eager(batch)
        for name, value in batch.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return self._result.clone()

    def _eager(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _record(self, batch: Mapping[str, Tensor]) -> None:
        """Capture the graph; where the model does something that cannot be, say so and go on."""
        self._inputs = {name: value.to(self._device).clone() for name, value in batch.items()}
        # A graph of an earlier run that is freed during the recording would spoil it.
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._result = self._eager(self._inputs)
        except RuntimeError as error:
            self._capture = False
            _log.warning(
                "this model cannot be recorded as a CUDA graph, steps are slower: %s", error
            )
            return
        self._graph = graph
