"""Losses measured once: a small file for each pair of a model and the inputs it was run on.

    losses-<key>.json   {"version": 1, "losses": {tensor: {candidate: loss}}}

``key`` is the SHA-256 of the weights' own bytes and of the calibration inputs, so that a file can
never be taken for another model's. The file is replaced whole. One that cannot be read is reported
and measured anew: a cache is never a reason to fail.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from edgesparse.calibrate.windows import Batch, digest
from edgesparse.errors import CorruptPack
from edgesparse.model import CapturedModel
from edgesparse.store.fields import Fields
from edgesparse.store.strict_json import parse_object

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the file and of how losses are measured: a change of either measures everything anew."""

_MAX_NBYTES = 1 << 26


class Measured:
    """Losses by tensor and candidate; a context that writes new ones when it ends.

    Args:
        path: The file; None remembers nothing beyond this object.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._losses = {} if path is None else read_losses(path)
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
            _write(self._path, self._losses)


def weights_digest(captured: CapturedModel) -> str:
    """Return a SHA-256 over the values of all tensors, in the types they are stored in."""
    sha, weights = hashlib.sha256(), captured.weights()
    for tensor in captured.tensors:
        sha.update(f"{tensor.name}{tensor.dtype}{tensor.shape}".encode())
        value = weights[tensor.name].detach().cpu().contiguous().reshape(-1)
        sha.update(value.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def read_losses(path: Path) -> dict[str, dict[str, float]]:
    """Return the losses of a file, {} if there is none or it cannot be used."""
    try:
        if path.stat().st_size > _MAX_NBYTES:
            raise CorruptPack(f"it has {path.stat().st_size} bytes")
        fields = Fields(parse_object(path.read_bytes(), path.name), path.name)
        if fields.integer("version") != VERSION:
            return {}
        losses = fields.object("losses")
        return {
            tensor: {candidate: _finite(own, candidate) for candidate in losses.raw(tensor)}
            for tensor, own in losses.items()
        }
    except FileNotFoundError:
        return {}
    except (CorruptPack, OSError) as error:
        _log.warning(
            "%s: measured losses cannot be read, so they are measured anew: %s", path, error
        )
        return {}


def _finite(own: Fields, candidate: str) -> float:
    value = own.optional_number(candidate)
    if value is None or value < 0:
        raise own.wrong(f"the loss of {candidate[:60]!r} is {value}")
    return value


def _write(path: Path, losses: dict[str, dict[str, float]]) -> None:
    """Replace the file; a disk that refuses is reported and costs only the time to measure."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": VERSION, "losses": losses}, allow_nan=False)
        aside.write_text(text, encoding="ascii")
        aside.replace(path)
    except (OSError, ValueError) as error:
        _log.warning("%s: measured losses cannot be kept: %s", path, error)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
