"""Losses measured once: a small file for each pair of a model and the inputs it was run on.

    losses-<key>.json   {"version": 1, "losses": {tensor: {candidate: loss}}}

``key`` is the SHA-256 of the weights' own bytes and of the calibration inputs, so that a file can
never be taken for another model's; see ``store.measurements``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from edgesparse.calibrate.windows import Batch, digest
from edgesparse.model import CapturedModel
from edgesparse.store.measurements import read_measurements, write_measurements

VERSION = 1
"""Of the file and of how losses are measured: a change of either measures everything anew."""

_WHAT = "losses"


class Measured:
    """Losses by tensor and candidate; a context that writes new ones when it ends.

    Args:
        path: The file; None remembers nothing beyond this object.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._losses = {} if path is None else read_measurements(path, _WHAT, version=VERSION)
        self._is_new = False

    @classmethod
    def of(cls, directory: Path | None, captured: CapturedModel, batches: Iterable[Batch]) -> Self:
        """Return what was measured of a model on these inputs.

        Args:
            directory: Where the files are; None reads and writes nothing.
            captured: The model, whose weights are read once.
            batches: The inputs.
        """
        if directory is None:
            return cls(None)
        key = hashlib.sha256(f"{weights_digest(captured)}{digest(batches)}".encode()).hexdigest()
        return cls(directory / f"losses-{key[:40]}.json")

    def knows(self, tensor: str, candidates: Iterable[str]) -> bool:
        """Whether every candidate of a tensor was measured."""
        return set(candidates) <= set(self._losses.get(tensor, {}))

    def loss(self, tensor: str, candidate: str, measure: Callable[[], float]) -> float:
        """Return the loss of one candidate, measured now if it never was."""
        own = self._losses.setdefault(tensor, {})
        if candidate not in own:
            own[candidate], self._is_new = float(measure()), True
        return own[candidate]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is new, however the measuring ended."""
        if self._path is not None and self._is_new:
            write_measurements(self._path, _WHAT, self._losses, version=VERSION)


def weights_digest(captured: CapturedModel) -> str:
    """Return a SHA-256 over the values of all tensors, in the types they are stored in."""
    sha, weights = hashlib.sha256(), captured.weights()
    for tensor in captured.tensors:
        sha.update(f"{tensor.name}{tensor.dtype}{tensor.shape}".encode())
        value = weights[tensor.name].detach().cpu().contiguous().reshape(-1)
        sha.update(value.view(torch.uint8).numpy().data)
    return sha.hexdigest()
