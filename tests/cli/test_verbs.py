"""The verbs on a real, tiny model: what they print, and that the numbers belong together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgesparse.model import CompressedModel

Cli = Callable[..., Result]

EVALUATION_KEYS = {
    "perplexity", "dense_perplexity", "ratio", "kl", "top1_agreement", "nbytes", "bits_per_weight",
}  # fmt: skip


def test_plan_predicts_the_bytes_that_compress_writes(
    cli: Cli, language_model: Path, compressed: Path
) -> None:
    options = ("--sparsity", 0.5, "--bits", 4, "--group-size", 32, "--budget", "file=400kB")
    result = cli("plan", language_model, *options, "--json")
    assert result.exit_code == 0
    predicted = json.loads(result.stdout)["nbytes"]
    written = (compressed / "weights.safetensors").stat().st_size
    assert written == pytest.approx(predicted, rel=0.005)
    assert written <= 400_000


def test_plan_shows_every_tensor_and_the_budget(cli: Cli, language_model: Path) -> None:
    shown = cli("plan", language_model, "--sparsity", 0.5, "--budget", "file=400kB").stdout
    assert "model.layers.1.mlp.down_proj.weight" in shown
    assert "bitmask" in shown
    assert "400 kB" in shown
    assert "equal bytes without sparsity" in shown


def test_evaluate_json_has_the_stable_keys(cli: Cli, compressed: Path, text: Path) -> None:
    result = cli("evaluate", compressed, "--text", text, "--window", 32, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) >= EVALUATION_KEYS
    assert found["ratio"] == pytest.approx(found["perplexity"] / found["dense_perplexity"])
    model = CompressedModel.load(compressed)
    assert (found["nbytes"], found["bits_per_weight"]) == (model.nbytes, model.bits_per_weight)


def test_a_dense_model_agrees_with_itself(cli: Cli, language_model: Path, text: Path) -> None:
    options = ("--text", text, "--window", 32, "--max-windows", 2, "--json")
    found = json.loads(cli("evaluate", language_model, *options).stdout)
    assert (found["ratio"], found["kl"], found["top1_agreement"]) == (1, 0, 1)
    assert found["bits_per_weight"] == 16


def test_inspect_tells_a_source_from_a_compressed_model(
    cli: Cli, language_model: Path, compressed: Path
) -> None:
    source = json.loads(cli("inspect", language_model, "--json").stdout)
    packed = json.loads(cli("inspect", compressed, "--json").stdout)
    assert source["parameters"] == packed["parameters"]
    assert packed["nbytes"] < source["nbytes"] / 2
    assert packed["sparsity"] == pytest.approx(_share_removed(packed["tensors"]))
    by_name = {tensor["name"]: tensor for tensor in packed["tensors"]}
    up = by_name["model.layers.0.mlp.up_proj.weight"]
    assert (up["format"], up["bits"], up["group_size"]) == ("bitmask4", 4, 32)
    assert up["sparsity"] == pytest.approx(0.5, abs=0.01)
    shown = cli("inspect", compressed).stdout
    assert "← closer" in shown  # the comparison made by compress travels with the model
    assert "bitmask4" in shown


def _share_removed(tensors: list[dict[str, float | list[int]]]) -> float:
    import math

    packed = [t for t in tensors if "format" in t]
    numels = [math.prod(t["shape"]) for t in packed]  # type: ignore[arg-type]
    removed = [float(t["sparsity"]) * n for t, n in zip(packed, numels, strict=True)]  # type: ignore[arg-type]
    return sum(removed) / sum(numels)


def test_generate_is_the_same_for_the_same_seed(cli: Cli, compressed: Path) -> None:
    def continued(seed: int) -> str:
        options = ("--prompt", "It was a dark evening when", "--tokens", 8, "--seed", seed)
        result = cli("generate", compressed, *options)
        assert result.exit_code == 0
        return result.stdout

    assert continued(0) == continued(0) != continued(1)
    assert continued(0).startswith("It was a dark evening when")


def test_results_go_to_stdout_and_nothing_else_does(cli: Cli, compressed: Path, text: Path) -> None:
    result = cli("evaluate", compressed, "--text", text, "--window", 32, "--json", "--quiet")
    json.loads(result.stdout)
    assert result.stderr == ""


def test_compress_json_is_one_document(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text, "--bits", 3,
        "--group-size", 32, "--window", 32, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["file_nbytes"] == (tmp_path / "out" / "weights.safetensors").stat().st_size
    assert found["sparsity"] == 0
    evaluation = found["evaluation"]
    assert evaluation["equal_bytes"] is None  # nothing was removed: it is the dense alternative
    assert "not calibrated on" in evaluation["measured_on"]
    assert evaluation["compressed"]["kl"] > 0


@pytest.mark.parametrize(
    ("options", "format_name"),
    [
        (("--pattern", "2:4", "--bits", 16, "--method", "magnitude"), "bitmask16"),
        (("--pattern", "4x4", "--sparsity", 0.5, "--method", "wanda", "--bits", 8), "bitmask8"),
        (("--sparsity", 0, "--bits", 4, "--quantizer", "rtn"), "dense4"),
    ],
)
def test_compress_takes_every_kind_of_option(
    cli: Cli,
    language_model: Path,
    text: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    format_name: str,
) -> None:
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text, *options,
        "--window", 32, "--no-compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    model = CompressedModel.load(tmp_path / "out")
    assert model.packed["model.layers.0.mlp.up_proj.weight"].spec.name == format_name


def test_a_recipe_file_says_it_by_layer(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[rule]]\nmatch = { name = "re:.*down_proj.weight$" }\npattern = "2:4"\n'
        'method = "magnitude"\nbits = 4\ngroup_size = 32\n'
    )
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text,
        "--recipe", recipe, "--window", 32, "--no-compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    packed = CompressedModel.load(tmp_path / "out").packed
    assert sorted(packed) == [f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)]
    assert str(packed["model.layers.0.mlp.down_proj.weight"].spec.pattern) == "2:4"
