"""A small program, its inputs and what it should give: one export for all tests of this folder."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgesparse_device.bundle import Bundle
from edgesparse_device.making import CaseArrays, write_bundle
from torch import Tensor, nn

VOCABULARY = 50


class Words(nn.Module):
    """Token ids [1, 16] to logits [1, 16, 50]: what a language model looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.hidden = nn.Linear(32, 64)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(nn.functional.silu(self.hidden(self.embedding(ids))))


def export(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, xnnpack: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own internals
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(module.eval(), inputs, strict=True)
        partitioner = [XnnpackPartitioner()] if xnnpack else []
        edge = to_edge_transform_and_lower(program, partitioner=partitioner)
        path.write_bytes(edge.to_executorch().buffer)
    return path


def make_cases(module: nn.Module, count: int) -> list[CaseArrays]:
    generator = np.random.default_rng(0)
    cases = []
    for i in range(count):
        ids = generator.integers(0, VOCABULARY, (1, 16))
        with torch.no_grad():
            logits = module(torch.from_numpy(ids)).numpy()
        cases.append(CaseArrays(name=f"case-{i}", inputs={"ids": ids}, outputs={"logits": logits}))
    return cases


@pytest.fixture(scope="session")
def words() -> nn.Module:
    torch.manual_seed(0)
    return Words().eval()


@pytest.fixture(scope="session")
def program(words: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module as a ``.pte`` for XNNPACK."""
    path = tmp_path_factory.mktemp("program") / "words.pte"
    return export(words, (torch.zeros(1, 16, dtype=torch.long),), path, xnnpack=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def cases(words: nn.Module) -> Callable[[int], list[CaseArrays]]:
    """Makes cases with references of the module itself."""
    return lambda count: make_cases(words, count)


@pytest.fixture
def make_bundle(program: Path, words: nn.Module, tmp_path: Path) -> Callable[..., Bundle]:
    def make(count: int = 1, **changes: Any) -> Bundle:
        options = {
            "target": "executorch",
            "task": "causal-lm",
            "tolerance": 1e-5,
            "artifact": program,
            "cases": make_cases(words, count),
            **changes,
        }
        return write_bundle(tmp_path / "bundle", force=True, **options)

    return make
