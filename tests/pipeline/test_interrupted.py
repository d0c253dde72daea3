"""Whatever happens to a compression, in whatever order: the same result, or a refusal, never less.

A machine (hypothesis) kills runs, damages what they left, fills up the disk, asks for another job
and goes on. What it expects is a model of a few lines: whose journal lies there, if any.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from torch import nn

import edgesparse as es
from edgesparse.compression import Progress, compress
from edgesparse.errors import FormatError, ResumeRefused
from edgesparse.journal import journal as journal_module
from edgesparse.model import CapturedModel, CompressedModel

TENSORS = 6
JOBS = ("sparsegpt", "magnitude")
jobs, counts = st.sampled_from(JOBS), st.integers(1, TENSORS)


class Block(nn.Module):
    """Two linears of one input, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + torch.tanh(self.left(x)) * self.right(x)
        return y


@cache
def model() -> tuple[CapturedModel, list[dict[str, torch.Tensor]]]:
    """Return a chain of three blocks, and its calibration."""
    torch.manual_seed(0)
    module = nn.Sequential(*(Block() for _ in range(TENSORS // 2))).eval()
    captured = es.load(module, example_inputs=torch.zeros(1, 16))
    return captured, [{next(iter(captured.example_inputs)): torch.randn(8, 16)} for _ in range(2)]


@cache
def undisturbed(job: str) -> CompressedModel:
    return run(job)


def run(job: str, **options: Any) -> CompressedModel:
    captured, batches = model()
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), method=job, bits=4, group_size=16)
    return compress(captured, es.plan(captured, es.Recipe((rule,))), batches, **options)


class Interruptions(RuleBasedStateMachine):
    """One journal, and what is done to it; runs are killed by an exception of this kind."""

    owner: str | None = None

    def __init__(self, killed: type[BaseException]) -> None:
        super().__init__()
        self.suddenly = killed

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.journal = self.folder / ".out.journal"

    @rule(job=jobs, count=counts)
    def killed(self, job: str, count: int) -> None:
        def stop(progress: Progress) -> None:
            if progress.done == count:
                raise self.suddenly

        self.attempt(job, self.suddenly, progress=stop)

    @rule(job=jobs, count=counts)
    def the_disk_is_full(self, job: str, count: int) -> None:
        written, calls = journal_module.write_tensor_file, 0

        def full(path: Path, tensors: Any) -> str:
            nonlocal calls
            calls += 1
            if calls == count:
                path.write_bytes(b"half of")
                raise OSError(28, "No space left on device")
            return written(path, tensors)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal_module, "write_tensor_file", full)
            self.attempt(job, FormatError)  # or it ends: fewer parts were left to write

    @rule(job=jobs)
    def goes_on(self, job: str) -> None:
        self.attempt(job)

    @rule(data=st.data())
    def a_part_is_damaged(self, data: st.DataObject) -> None:
        parts = sorted(self.journal.glob("*.safetensors"))
        if not parts:
            return
        part = data.draw(st.sampled_from(parts))
        content = part.read_bytes()
        part.unlink()
        if cut := data.draw(st.integers(0, len(content))):
            part.write_bytes(content[:-cut] + bytes(data.draw(st.integers(0, 1))))

    @rule(cut=st.integers(1, 400))
    def the_end_of_the_journal_is_lost(self, cut: int) -> None:
        file = self.journal / "journal.jsonl"
        if file.exists():
            file.write_bytes(file.read_bytes()[:-cut])
            self.owner = self.owner if file.read_bytes().count(b"\n") else None

    @rule()
    def a_killed_write_left_something(self) -> None:
        self.journal.mkdir(exist_ok=True)
        (self.journal / f"{'0' * 32}.partial").write_bytes(b"half of")

    @rule()
    def starts_anew(self) -> None:
        shutil.rmtree(self.journal, ignore_errors=True)
        self.owner = None

    def attempt(
        self, job: str, ends_with: type[BaseException] | None = None, **options: Any
    ) -> None:
        """Run a job: another's journal is refused, else it ends as is said, or with the result."""
        if self.owner not in (None, job):
            before = content(self.journal)
            with pytest.raises(ResumeRefused, match="method was"):
                run(job, journal=self.journal, **options)
            assert content(self.journal) == before
            return
        self.owner = job
        try:
            result = run(job, journal=self.journal, **options)
        except BaseException as error:
            if ends_with is None or not isinstance(error, ends_with):
                raise
        else:
            assert ends_with is not self.suddenly
            same(result, undisturbed(job))

    @invariant()
    def an_ended_run_can_be_read_and_saved_again(self) -> None:
        left = {path.suffix for path in self.folder.rglob("*") if path.is_file()}
        assert left <= {".jsonl", ".safetensors", ".partial"}

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: CompressedModel, other: CompressedModel) -> None:
    assert list(one.packed) == list(other.packed)
    assert one.errors == other.errors
    for name, packed in one.packed.items():
        for buffer, value in packed.buffers.items():
            assert np.array_equal(value, other.packed[name].buffers[buffer]), (name, buffer)


def run_machine(killed: type[BaseException], **options: Any) -> None:
    """Run many sequences of interruptions, each from the beginning."""
    chosen = settings(deadline=None, suppress_health_check=list(HealthCheck), **options)
    run_state_machine_as_test(lambda: Interruptions(killed), settings=chosen)


def test_interruptions(killed: type[BaseException]) -> None:
    run_machine(killed, max_examples=5, stateful_step_count=10, derandomize=True)


@pytest.mark.slow
def test_many_interruptions(killed: type[BaseException]) -> None:
    run_machine(killed, max_examples=200, stateful_step_count=30)
