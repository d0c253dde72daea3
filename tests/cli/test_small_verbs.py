"""The small verbs: what works here, completion, one run of an artifact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from edgesparse import exporting

Cli = Callable[..., Result]
EDGESPARSE = Path(sys.executable).parent / "edgesparse"


def test_doctor_says_what_is_here(cli: Cli) -> None:
    found = json.loads(cli("doctor", "--json").stdout)
    assert found["packages"]["torch"].startswith("2.")
    assert set(found["targets"]) == set(exporting.EXPORTERS)
    shown = cli("doctor").stdout
    assert found["machine"]["python"] in shown
    assert ".mlpackage" in shown


def test_doctor_says_how_to_get_what_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'edgesparse[coreml]'" in cli("doctor").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(cli: Cli, shell: str) -> None:
    result = cli("completion", shell)
    assert result.exit_code == 0
    assert "_EDGESPARSE_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("words", "position", "completed"),
    [
        ("edgesparse comp", 1, {"compress", "completion"}),
        ("edgesparse plan --tar", 2, {"--target"}),
    ],
)
def test_the_shell_is_answered(words: str, position: int, completed: set[str]) -> None:
    asked = {"_EDGESPARSE_COMPLETE": "bash_complete", "COMP_WORDS": words}
    done = subprocess.run(
        [EDGESPARSE],
        env={**os.environ, **asked, "COMP_CWORD": str(position)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {line.split(",")[1] for line in done.stdout.split()} == completed


def test_run_hands_the_arrays_over_and_keeps_the_outputs(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(path: Path, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"y": inputs["x"] * 2}

    monkeypatch.setattr(exporting, "run", doubled)
    np.savez(tmp_path / "in.npz", x=np.array([1.0, 2.0, 3.0]))
    arguments = (tmp_path / "a.pte", "--inputs", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    result = cli("run", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["y"] == {
        "shape": [3], "dtype": "float64", "least": 2, "mean": 4, "most": 6,
    }  # fmt: skip
    with np.load(tmp_path / "out.npz") as kept:
        np.testing.assert_array_equal(kept["y"], [2, 4, 6])
    assert cli("run", *arguments).exit_code == 1  # the output exists


def test_run_refuses_inputs_that_are_no_arrays(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.npz").write_bytes(b"not a zip")
    result = cli("run", tmp_path / "a.pte", "--inputs", tmp_path / "in.npz")
    assert result.exit_code == 1
    assert "no .npz of plain arrays" in result.stderr
