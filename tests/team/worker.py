"""One process of a team: compress a small chain of blocks by a method, and save it.

    worker.py OUTPUT METHOD [LOSE]      started by torchrun's variables
    worker.py OUTPUT recover [LOSE]     compress alone, and recover what came of it together

With LOSE the last process dies after so many tensors or steps, as if its machine were switched off.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import edgesparse as es
from edgesparse.calibrate.team import joined
from edgesparse.compression import Progress, compress
from edgesparse.errors import EdgesparseError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.recovery import RecoveryProgress


class Block(nn.Module):
    """Two linears with one input, one behind them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.out(torch.tanh(self.left(x)) * self.right(x))
        return y


class Chained(nn.Module):
    """A stem, a chain of blocks and a head."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y: torch.Tensor = self.head(x)
        return y


def model() -> CapturedModel:
    torch.manual_seed(0)
    return es.load(Chained().eval(), example_inputs=torch.zeros(2, 8))


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(50, 8, generator=generator)} for _ in range(6)]


def plan(captured: CapturedModel, method: str) -> es.Plan:
    """Return a plan for a method, with a pattern of its own if one stands behind it."""
    method, _, pattern = method.partition(" ")
    quantizer = "rtn" if method in ("magnitude", "wanda") else "gptq"
    rule = es.Rule(
        pattern=es.Pattern.parse(pattern) if pattern else es.Pattern(sparsity=0.5),
        method=method, quantizer=quantizer, group_size=16,
    )  # fmt: skip
    return es.plan(captured, es.Recipe((rule,)))


def recovery(small: CompressedModel, checkpoint: Path, **options: Any) -> CompressedModel:
    """Return ``small`` recovered in a few steps."""
    return es.recover(
        small, data=data(), steps=8, lr=2e-3, batch=50, checkpoint=checkpoint, **options
    )


def recover_together(output: Path, lose: int) -> None:
    captured = model()
    small = compress(captured, plan(captured, "magnitude"), data())
    with joined("cpu") as (team, device):

        def watch(progress: RecoveryProgress) -> None:
            if progress.step == lose and team.rank == team.size - 1:
                os._exit(9)

        state = output.with_suffix(".safetensors")
        recovered = recovery(small, state, team=team, device=device, progress=watch)
        if team.leads:
            recovered.save(output)


def main(output: Path, method: str, lose: int) -> None:
    captured = model()
    with joined("cpu") as (team, device):

        def watch(progress: Progress) -> None:
            if progress.done == lose and team.rank == team.size - 1:
                os._exit(9)

        small = compress(
            captured, plan(captured, method), data(), device=device, team=team,
            journal=output.with_suffix(".journal"), progress=watch,
        )  # fmt: skip
        if team.leads:
            small.save(output)


if __name__ == "__main__":
    try:
        lost_after = int(sys.argv[3]) if len(sys.argv) > 3 else -1
        if sys.argv[2] == "recover":
            recover_together(Path(sys.argv[1]), lost_after)
        else:
            main(Path(sys.argv[1]), sys.argv[2], lost_after)
    except EdgesparseError as error:
        sys.exit(f"error: {error}")
