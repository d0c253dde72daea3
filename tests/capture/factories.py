"""Factories a user might write."""

from __future__ import annotations

import torch
from torch import nn


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)
        self.scale = nn.Parameter(torch.ones(10, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.stem(image)))
        hidden = self.up(self.depthwise(hidden)).mean(dim=(2, 3))
        return nn.functional.linear(self.head(hidden), self.scale)


def cnn() -> tuple[nn.Module, tuple[torch.Tensor]]:
    torch.manual_seed(0)
    return Cnn(), (torch.zeros(1, 3, 8, 8),)


def by_name() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Cnn(), {"image": torch.zeros(1, 3, 8, 8)}


def not_a_pair() -> nn.Module:
    return Cnn()


def fails() -> None:
    raise RuntimeError("no such checkpoint")
