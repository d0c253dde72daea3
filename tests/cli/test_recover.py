"""Recovery from the command line: same masks, same bytes, other values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from edgesparse.model import CompressedModel
from edgesparse.recovery import blockwise as blockwise_module

Cli = Callable[..., Result]


def test_masks_and_bytes_stay_and_values_change(
    cli: Cli, compressed: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "recovered"
    options = ("--data", text, "--steps", 3, "--window", 32, "--verbose")
    result = cli("recover", compressed, "-o", output, *options)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("loss") == 3
    before, after = CompressedModel.load(compressed), CompressedModel.load(output)
    assert after.nbytes == before.nbytes
    changed = 0
    for name, packed in before.packed.items():
        assert after.packed[name].spec == packed.spec
        np.testing.assert_array_equal(after.packed[name].codes.keep_mask, packed.codes.keep_mask)
        changed += not np.array_equal(after.packed[name].decode(), packed.decode())
    assert changed
    assert "evaluation" not in after.metadata  # those numbers were the other values'


def test_a_limit_is_needed(cli: Cli, compressed: Path, text: Path, tmp_path: Path) -> None:
    result = cli("recover", compressed, "-o", tmp_path / "out", "--data", text)
    assert result.exit_code == 2
    assert "--minutes 10" in result.stderr
    assert list(tmp_path.iterdir()) == []


def blockwise(compressed: Path, text: Path, output: Path) -> tuple[object, ...]:
    sizes = ("--steps", 2, "--window", 32, "--windows", 16)
    return ("recover", compressed, "-o", output, "--data", text, "--blockwise", *sizes)


def test_block_by_block_it_goes_on_with_what_is_finished(
    cli: Cli, compressed: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli(*blockwise(compressed, text, tmp_path / "whole"), "--verbose")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("relative output error") == 2  # blocks
    output, journal = tmp_path / "out", tmp_path / ".out.journal"
    calls = list[object]()
    optimize = blockwise_module._optimize

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        optimize(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(blockwise_module, "_optimize", interrupted)
        result = cli(*blockwise(compressed, text, output))
    assert result.exit_code != 0
    assert "1 finished parts are kept" in result.stderr
    assert journal.is_dir()
    assert not output.exists()

    result = cli(*blockwise(compressed, text, output))
    assert result.exit_code == 1
    assert "--resume goes on" in result.stderr
    result = cli(*blockwise(compressed, text, output)[:-1], 17, "--resume")
    assert result.exit_code == 2
    assert "of another job: data.sha256 was" in result.stderr
    result = cli(*blockwise(compressed, text, output), "--resume")
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    name = "weights.safetensors"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--blockwise", "--minutes", 1), "--minutes goes without --blockwise"),
        (("--blockwise", "--noise", 0.1), "--noise goes without --blockwise"),
        (("--blockwise", "--checkpoint", "s"), "--checkpoint goes without --blockwise"),
        (("--steps", 1, "--resume"), "--resume goes with --blockwise"),
        (("--steps", 1, "--windows", 9), "--windows goes with --blockwise"),
        (("--blockwise",), "--steps 200, for each block"),
    ],
)
def test_each_kind_of_training_has_options_of_its_own(
    cli: Cli, compressed: Path, text: Path, tmp_path: Path, given: tuple[object, ...], words: str
) -> None:
    result = cli("recover", compressed, "-o", tmp_path / "out", "--data", text, *given)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []
