"""Recovery from the command line: same masks, same bytes, other values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from click.testing import Result

from edgesparse.model import CompressedModel

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
