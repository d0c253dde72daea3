"""Real inputs for the models of the zoo: bytes of a text, a recording, a photograph.

The models are random, so that what they say means nothing; but what goes through them is spread as
text, speech and pictures are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgesparse_converters.coreml.program import TensorType

WINDOW = 200
"""Samples of one column of a spectrogram."""


@dataclass(frozen=True)
class Sources:
    """Where real inputs come from.

    Attributes:
        text: UTF-8 text, whose bytes are tokens of a vocabulary of 256.
        sounds: NPZ with recordings one after the other in ``samples``.
        picture: A photograph.
    """

    text: Path
    sounds: Path
    picture: Path


def real_inputs(
    types: Mapping[str, TensorType], sources: Sources, drawn: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return one call's inputs: what the sources have for, and else what was ``drawn``."""
    found = dict(drawn)
    for name, kind in types.items():
        shape = tuple(size or 1 for size in kind.shape)
        if name == "input_ids":
            tokens = np.frombuffer(sources.text.read_bytes(), np.uint8, shape[-1])
            found[name] = np.broadcast_to(tokens, shape).astype(np.int32)
        elif name == "pixel_values":
            found[name] = _picture(sources.picture, shape)
        elif name == "input_values":
            found[name] = _samples(sources.sounds, shape[-1]).reshape(shape)
        elif name == "input_features":
            found[name] = _spectrogram(sources.sounds, shape)
    return found


def _picture(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a photograph [1, 3, H, W], about 0 ± 1."""
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((shape[3], shape[2])), np.float32)
    return (pixels.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)


def _samples(path: Path, count: int) -> NDArray[np.float32]:
    """Return the first samples of the recordings, of mean 0 and variance 1."""
    with np.load(path, allow_pickle=False) as stored:
        samples: NDArray[np.float32] = stored["samples"][:count].astype(np.float32)
    samples -= samples.mean()
    samples /= samples.std()
    return samples


def _spectrogram(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the logarithm of a spectrogram [1, bands, columns], about 0 ± 1."""
    _, bands, columns = shape
    frames = _samples(path, columns * WINDOW).reshape(columns, WINDOW)
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), n=2 * bands)[:, :bands]) ** 2
    found = np.log(power.T + 1e-3)[None]
    scaled = torch.from_numpy((found - found.mean()) / found.std())
    return scaled.float().numpy()
