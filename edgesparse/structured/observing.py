"""Run calibration batches through a model while hooks look on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Batches = Sequence[Mapping[str, Any]]
"""Keyword arguments of forward passes."""


def observe(module: nn.Module, batches: Batches, hooks: Sequence[RemovableHandle]) -> None:
    """Run every batch without gradients, then remove ``hooks``; they go after an error too."""
    try:
        with torch.no_grad():
            for batch in batches:
                module(**batch)
    finally:
        for hook in hooks:
            hook.remove()
