"""Memory and disk are asked for before a command begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgesparse.capture import load
from edgesparse.cli._preparing import can_measure

Cli = Callable[..., Result]


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where work begins: choosing the data, training."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("edgesparse.cli._calibration.choose", begun)
    monkeypatch.setattr("edgesparse.structured.healing.heal", begun)
    monkeypatch.setattr("edgesparse.recovery.recover", begun)


@pytest.mark.usefixtures("idle")
def test_a_memory_limit_that_cannot_be_kept(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text,
        "--sparsity", 0.5, "--budget", "file=300kB", "--memory-limit", "20MB",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "memory limit 20.00 MB: the largest block takes" in result.stderr
    assert "the program" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("idle")
def test_less_memory_than_weights(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesparse.memory.available_nbytes", lambda: 1_000_000)
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text, "--bits", 4
    )
    assert result.exit_code == 2
    assert "can be had; with --memory-limit" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("verb", ["compress", "recover", "prune", "export"])
def test_a_disk_without_room(
    cli: Cli, language_model: Path, compressed: Path, text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, verb: str,
) -> None:  # fmt: skip
    usage = shutil.disk_usage(tmp_path)
    arguments = {
        "compress": (language_model, "--calibration", text, "--bits", 4),
        "recover": (compressed, "--data", text, "--steps", 1),
        "prune": (language_model, "--layers", 1, "--importance", "magnitude", "--no-refit",
                  "--data", text, "--minutes", 1),
        "export": (compressed,),
    }[verb]  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    name = "out.mlpackage" if verb == "export" else "out"
    result = cli(verb, arguments[0], "-o", tmp_path / name, *arguments[1:])
    assert result.exit_code == 1, result.output
    assert "are needed, 1.00 kB are free on that disk" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_compared_whole_counts_beside_the_program(language_model: Path) -> None:
    captured = load(language_model)
    whole = 8 * captured.num_parameters
    assert can_measure(captured, None)
    assert can_measure(captured, whole + (4 << 30))
    assert not can_measure(captured, whole + 1)
