"""A depthwise-separable network over time that hears ten words: 34,378 weights.

Recordings become 32 frames of 32 log-mel energies; each block filters every channel along time and
then mixes the channels, the mixing as a linear layer, which is where its weights are.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

RATE, WINDOW, HOP, FRAMES, MELS = 8000, 384, 250, 32, 32
WEIGHTS = Path(__file__).parents[1] / "models/keywords/model.safetensors"


class Block(nn.Module):
    """Filter along time, mix the channels, add; ``[batch, frames, channels]`` in and out."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.along_time = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.mix = nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` and what this block hears in it."""
        y = self.mix(self.along_time(x.transpose(1, 2)).transpose(1, 2))
        return x + torch.relu(self.norm(y.transpose(1, 2)).transpose(1, 2))


class Keywords(nn.Module):
    """Log-mel energies ``[batch, 32, 32]`` to the scores of the digits ``[batch, 10]``."""

    def __init__(self, channels: int = 96, blocks: int = 3, *, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(MELS, channels)
        self.blocks = nn.Sequential(*(Block(channels, norm=norm) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores."""
        return self.head(self.blocks(torch.relu(self.stem(features))).mean(1))


def make() -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the trained network and example inputs: what ``edgesparse.load`` takes."""
    network = Keywords()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval(), {"features": torch.zeros(1, FRAMES, MELS)}


def log_mel(samples: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``[32, 32]`` log-mel energies of a recording, its mean over time taken out."""
    wave = np.zeros(HOP * (FRAMES - 1) + WINDOW, np.float32)
    cut = samples[: len(wave)]
    wave[: len(cut)] = cut / 32768
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2
    energies = np.log(power @ _mel_filters().T + 1e-6).astype(np.float32)
    return energies - energies.mean(0)


def _mel_filters() -> NDArray[np.float64]:
    """Return triangles, ``[32, 193]``, evenly spaced in mel from 60 Hz to 3800 Hz."""
    ends = 2595 * np.log10(1 + np.array([60, 3800]) / 700)
    points = 700 * (10 ** (np.linspace(*ends, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rise = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    fall = (points[2:, None] - bins) / np.diff(points)[1:, None]
    return np.maximum(0, np.minimum(rise, fall))
