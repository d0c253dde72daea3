"""A checkpoint whose parts do not fit is refused, and changes nothing."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgesparse.errors import CalibrationError, FormatError
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.progress import Best, Position

Damage = Callable[[dict[str, Tensor], dict[str, Any]], object]


def trained() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    student = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(student.parameters())
    student(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return student, optimizer


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Damage], Checkpoint]:
    student, optimizer = trained()
    best = Best(patience=3)
    best.see(1.0, student)
    path = tmp_path / "state.safetensors"
    Checkpoint(path).write(student, optimizer, Position(step=7, seconds=2.5), best)

    def damage(change: Damage) -> Checkpoint:
        with safe_open(path, "pt") as file:
            where = json.loads(file.metadata()["recovery"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(tensors, where)
        save_file(tensors, path, metadata={"recovery": json.dumps(where)})
        return Checkpoint(path)

    return damage


def test_whole_it_is_taken(damaged: Callable[[Damage], Checkpoint]) -> None:
    student, optimizer = trained()
    at, best = Position(), Best(patience=3)
    damaged(lambda tensors, where: None).restore(student, optimizer, at, best)
    assert (at.step, at.seconds, best.least) == (7, 2.5, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, where: tensors.pop("optimizer.0.step"),
        lambda tensors, where: tensors.pop("optimizer.1.exp_avg"),
        lambda tensors, where: tensors.update({"optimizer.2.step": torch.tensor(1.0)}),
        lambda tensors, where: tensors.update({"optimizer.0.exp_avg": torch.zeros(5)}),
        lambda tensors, where: tensors.update({"student.bias": torch.zeros(3).long()}),
        lambda tensors, where: tensors.pop("best.bias"),
        lambda tensors, where: where.update(step=[]),
        lambda tensors, where: where.update(seconds=10**400),
        lambda tensors, where: where.update(least="x"),
        lambda tensors, where: where.update(job=[1]),
    ],
)
def test_parts_that_do_not_fit(damaged: Callable[[Damage], Checkpoint], change: Damage) -> None:
    student, optimizer = trained()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    at = Position()
    with pytest.raises(CalibrationError, match=r"state\.safetensors"):
        damaged(change).restore(student, optimizer, at, Best(patience=3))
    assert at.step == 0
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_a_disk_that_refuses_leaves_the_earlier_one(
    damaged: Callable[[Damage], Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = damaged(lambda tensors, where: None)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        (tmp_path / ".state.safetensors.partial").write_bytes(b"half of")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("edgesparse.recovery.checkpoint.save_file", full)
    with pytest.raises(FormatError, match=r"No space left on device .* an earlier one is left"):
        checkpoint.write(*trained(), Position(step=8), Best(patience=3))
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, list[str]]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        names = sorted(path.name for path in tmp_path.iterdir())
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), names))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    Checkpoint(tmp_path / "s").write(*trained(), Position(), Best(patience=3))
    assert flushed == [(False, [".s.partial"]), (True, ["s"])]
