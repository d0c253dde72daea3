"""An encoder and a network of one's own go through the same commands, with no special code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

Cli = Callable[..., Result]
EXAMPLES = Path(__file__).parents[2] / "examples"
ARTIFACTS = ("model.pte", "model.mlpackage")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a randomly initialized BERT encoder, as transformers saves it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=256, max_position_embeddings=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "bert"
    BertModel(config).eval().save_pretrained(path)
    return path


def prove(cli: Cli, packed: Path, source: tuple[object, ...], folder: Path) -> None:
    """Export to both targets and validate both files."""
    for name in ARTIFACTS:
        result = cli("export", packed, "-o", folder / name, *source)
        assert result.exit_code == 0, result.stderr
        # What it says to do next works as typed.
        assert " ".join(map(str, ("--against", packed, *source))) in result.stdout
        result = cli("validate", folder / name, "--against", packed, *source, "--json")
        assert result.exit_code == 0, result.stderr
        verdict = json.loads(result.stdout)
        assert verdict["ok"]
        assert all(layer["equal"] for layer in verdict["layers"])
        assert verdict["layers"]


def test_an_encoder(cli: Cli, bert: Path, tmp_path: Path) -> None:
    result = cli(
        "compress", bert, "-o", tmp_path / "packed", "--sparsity", 0.5, "--bits", 4,
        "--group-size", 64, "--windows", 4, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    comparison = json.loads(result.stdout)["evaluation"]
    assert comparison["measured_on"] == "the model's own example inputs"
    assert 0 < comparison["compressed"]["output_error"] < 1
    prove(cli, tmp_path / "packed", (), tmp_path)
    what_is_there_is_kept_if_it_is_this_model(cli, bert, tmp_path)


def what_is_there_is_kept_if_it_is_this_model(cli: Cli, bert: Path, folder: Path) -> None:
    """``export --resume`` after an export that had come to its end."""
    pte = folder / "model.pte"
    before = pte.stat().st_mtime_ns
    result = cli("export", folder / "packed", "-o", pte, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "was whole already" in result.stdout
    cli("compress", bert, "-o", folder / "other", "--bits", 8, "--quantizer", "rtn", "--no-compare")
    result = cli("export", folder / "other", "-o", pte, "--resume")
    assert result.exit_code == 1
    assert "is not this model" in result.stderr
    assert pte.stat().st_mtime_ns == before


def test_a_network_of_ones_own(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLES / "03_own_module.py", tmp_path / "small_cnn.py")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).standard_normal((24, 3, 16, 16), dtype=np.float32)
    np.savez("images.npz", input=images)
    factory = "small_cnn:make"
    result = cli(
        "compress", factory, "-o", "packed", "--calibration", "images.npz", "--pattern", "2:4",
        "--bits", 4, "--group-size", 64,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "output error" in result.stdout
    assert "the first half of images.npz" in result.stdout
    forgotten = cli("evaluate", "packed")
    assert forgotten.exit_code in (1, 2)
    assert "--source" in forgotten.stderr
    found = cli("evaluate", "packed", "--source", factory, "--inputs", "images.npz", "--json")
    assert json.loads(found.stdout)["cosine"] > 0.9
    prove(cli, Path("packed"), ("--source", factory), tmp_path)
