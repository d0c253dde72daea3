"""Packed operators are built where they run; without a compiler that is said, and a way is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from edgesparse import CompressedModel
from edgesparse.cli import main
from edgesparse.cli._console import Verbosity
from edgesparse.cli.demo import _prove

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("EDGESPARSE_CACHE", str(tmp_path / "nothing-built-yet"))


def test_validate_names_what_to_install(cli: Cli, compressed: Path, tmp_path: Path) -> None:
    assert cli("export", compressed, "-o", tmp_path / "m.pte").exit_code == 0
    result = cli("validate", tmp_path / "m.pte", "--against", compressed)
    assert result.exit_code == 1
    assert "needs no-such-compiler" in result.stderr
    assert "apt install cmake g++" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_demo_goes_on_with_the_kernels_of_the_runtime(
    compressed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = CompressedModel.load(compressed)
    with click.Context(main, obj=Verbosity()):
        artifact, verdict = _prove(model, tmp_path / "demo.pte", quiet=False)
    assert verdict.ok
    assert not any("packed" in form for form in artifact.lowering.values())
    assert "goes on with lowering=xnnpack" in capfd.readouterr().err
