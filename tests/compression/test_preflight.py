"""What there is no memory for is refused before anything is read, written or run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import edgesparse as es
from edgesparse import memory
from edgesparse.compression import compress
from edgesparse.errors import FormatError, UsageError
from edgesparse.model import CapturedModel
from edgesparse.recovery import recover, recover_blockwise
from edgesparse.recovery.room import require_room

Llama = Callable[..., CapturedModel]
RULE = es.Rule(bits=4, quantizer="rtn")


def untouchable(captured: CapturedModel) -> CapturedModel:
    """Return the model with weights that nobody may read."""

    def weights() -> dict[str, torch.Tensor]:
        raise AssertionError("the weights were read")

    return replace(captured, weights=weights)


def has(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(memory, "available_nbytes", lambda: nbytes)


def test_a_model_larger_than_memory_is_refused_and_told_of_the_limit(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = llama()
    plan = es.plan(captured, es.Recipe((es.Rule(bits=4, group_size=16),)))
    has(monkeypatch, 4 * captured.num_parameters - 1)
    words = r"weights in float32 take .* of memory, and .* can be had; with --memory-limit"
    with pytest.raises(UsageError, match=words):
        compress(untouchable(captured), plan, tokens, journal=tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []
    has(monkeypatch, 4 * captured.num_parameters)
    compress(captured, plan, tokens, windows=4, window=16)


def test_a_recovery_is_refused_by_memory_and_by_room_for_its_state(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = llama()
    small = es.compress(captured, es.plan(captured, es.Recipe((RULE,))))
    weights = sum(packed.codes.values.size for packed in small.packed.values())
    has(monkeypatch, 21 * weights - 1)
    with pytest.raises(UsageError, match=r"packed weights take .* of memory"):
        recover(small, untouchable(captured), data=tokens, steps=1)
    require_room(small, held_whole=False, checkpoint=None, keeps_best=False)  # shared out

    has(monkeypatch, 21 * weights)
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(
        "edgesparse.recovery.room.require_space", lambda path, nbytes: asked.append((path, nbytes))
    )
    require_room(small, held_whole=True, checkpoint=None, keeps_best=True)
    assert asked == []
    state = tmp_path / "state.safetensors"
    require_room(small, held_whole=True, checkpoint=state, keeps_best=True)
    recover(small, data=tokens, validation=tokens, steps=1, batch=1, window=16, checkpoint=state)
    assert asked[0] == asked[1]
    # Twice what is written: values, moments, masks; the best state comes with the first check.
    assert state.stat().st_size * 0.7 < asked[0][1] / 2 < state.stat().st_size * 1.6


def test_a_recovery_by_blocks_is_refused_where_both_models_do_not_fit(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = llama()
    small = es.compress(captured, es.plan(captured, es.Recipe((RULE,))))
    has(monkeypatch, 8 * captured.num_parameters - 1)
    with pytest.raises(UsageError, match=r"the dense and the compressed model in float32 take"):
        recover_blockwise(small, data=tokens, journal=tmp_path / "journal")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_refuses_a_checkpoint_before_training(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = llama()
    small = es.compress(captured, es.plan(captured, es.Recipe((RULE,))))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FormatError, match=r"are needed, 1\.00 kB are free"):
        recover(small, untouchable(captured), data=tokens, steps=1, checkpoint=tmp_path / "s")


def test_what_can_be_had_is_what_the_machine_and_its_container_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.available_nbytes() > 0
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   5000 kB\nSwapFree:   1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    assert memory.available_nbytes() == 6000 * 1024
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "memory.max").write_text("max\n")
    (tmp_path / "cgroup" / "memory.stat").write_text("anon 1000000\nfile 5000000\n")
    assert memory.available_nbytes() == 6000 * 1024
    (tmp_path / "cgroup" / "memory.max").write_text("3000000\n")
    assert memory.available_nbytes() == 2_000_000  # files in the cache make way
    (tmp_path / "cgroup" / "memory.max").write_text("900000\n")
    assert memory.available_nbytes() == 0
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")  # macOS
    assert memory.available_nbytes() > 1 << 28
