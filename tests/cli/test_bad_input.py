"""Bad input: one line on stderr, the right exit code, and nothing left behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

Cli = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return an empty directory; a failed command must leave it empty."""
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def damaged(language_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the model that a test may damage."""
    return Path(shutil.copytree(language_model, tmp_path / "damaged"))


def refused(result: Result, code: int, message: str, work: Path) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(work.iterdir()) == []


def test_a_missing_directory(cli: Cli, work: Path, text: Path) -> None:
    result = cli("compress", work / "gone", "-o", work / "out", "--calibration", text)
    refused(result, 1, "no such file or directory", work)


def test_a_truncated_safetensors(cli: Cli, work: Path, damaged: Path, text: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    result = cli("compress", damaged, "-o", work / "out", "--calibration", text, "--window", 32)
    refused(result, 1, "model.safetensors", work)


def test_nan_in_a_weight_is_found_and_named(
    cli: Cli, work: Path, damaged: Path, text: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(damaged / "model.safetensors")
    weights[name][3, 5] = torch.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    result = cli("compress", damaged, "-o", work / "out", "--calibration", text, "--window", 32)
    refused(result, 1, name, work)


def test_too_little_calibration_text(
    cli: Cli, work: Path, language_model: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("It was a dark evening. " * 100)
    result = cli("compress", language_model, "-o", work / "out", "--calibration", short)
    refused(result, 1, "need 2560; give more text", work)


def test_no_calibration_text(cli: Cli, work: Path, language_model: Path) -> None:
    result = cli("compress", language_model, "-o", work / "out", "--bits", 4)
    refused(result, 2, "--calibration", work)


def test_a_group_size_that_cannot_be(
    cli: Cli, work: Path, language_model: Path, text: Path
) -> None:
    options = ("--calibration", text, "--group-size", 12)
    result = cli("compress", language_model, "-o", work / "out", *options)
    refused(result, 2, "group_size is 12, expected a multiple of 8", work)


@pytest.mark.parametrize(
    ("option", "typed", "meant"),
    [("--method", "sparsgpt", "sparsegpt"), ("--quantizer", "gptqq", "gptq")],
)
def test_an_unknown_method_is_answered_with_the_nearest(
    cli: Cli, work: Path, language_model: Path, text: Path, option: str, typed: str, meant: str
) -> None:
    arguments = ("--calibration", text, "--sparsity", 0.5, "--bits", 4, option, typed)
    result = cli("compress", language_model, "-o", work / "out", *arguments)
    refused(result, 2, f"did you mean '{meant}'?", work)


def test_output_that_exists_is_kept(
    cli: Cli, work: Path, language_model: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("precious")
    result = cli("compress", language_model, "-o", output, "--calibration", text)
    refused(result, 1, "--force", work)
    forced = cli("compress", language_model, "-o", output, "--calibration", text, "--force")
    refused(forced, 1, "is not a compressed model", work)
    assert (output / "notes.txt").read_text() == "precious"


def test_an_impossible_budget_exits_3_and_names_what_could_be_reached(
    start: Start, work: Path, language_model: Path
) -> None:
    process = start("plan", language_model, "--budget", "file=3kB", cwd=work)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 3
    assert message.startswith("error: the budget cannot be met: file 3.00 kB, smallest reachable")
    assert message.count("model.layers") + message.count("embed_tokens") >= 5
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_keeps_what_is_finished_and_nothing_else(
    start: Start, work: Path, language_model: Path, text: Path, number: signal.Signals
) -> None:
    job = (
        "compress", language_model, "-o", "out/tiny", "--calibration", text, "--window", "32",
        "--sparsity", "0.5", "--no-compare", "--verbose",
    )  # fmt: skip
    process = start(*job, cwd=work)
    assert process.stderr is not None
    for line in process.stderr:  # the solvers are at work once a tensor is done
        if "relative output error" in line:
            break
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in rest
    assert [path.name for path in (work / "out").iterdir()] == [".tiny.journal"]
    if number == signal.SIGTERM:
        return
    assert "are kept in out/.tiny.journal, --resume goes on" in rest
    again = start(*job, cwd=work)
    _, message = again.communicate(timeout=60)
    assert again.returncode == 1
    assert "--resume goes on with them, --force starts anew" in message
    resumed = start(*job, "--resume", cwd=work)
    assert resumed.communicate(timeout=60)
    assert resumed.returncode == 0
    assert [path.name for path in (work / "out").iterdir()] == ["tiny"]


def test_an_artifact_without_its_model(cli: Cli, work: Path, compressed: Path) -> None:
    result = cli("export", work / "gone", "-o", work / "a.pte")
    refused(result, 1, "no such file or directory", work)
    result = cli("validate", work / "a.pte", "--against", compressed)
    refused(result, 1, "no such file or directory", work)
    result = cli("export", compressed, "-o", work / "a.pt")
    refused(result, 2, "did you mean .pte?", work)
    result = cli("export", compressed, "--target", "corml", "-o", work / "a.pte")
    refused(result, 2, "did you mean 'coreml'?", work)


def test_a_dense_model_cannot_be_exported(cli: Cli, work: Path, language_model: Path) -> None:
    result = cli("export", language_model, "-o", work / "a.pte")
    refused(result, 1, "is no compressed model", work)


def test_a_compressed_model_with_a_changed_byte_is_refused(
    cli: Cli, work: Path, compressed: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(compressed, tmp_path / "copy"))
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-100] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    result = cli("inspect", copy)
    refused(result, 1, "weights.safetensors", work)


@pytest.mark.parametrize(
    "text_bytes", [b"", b"\xff\xfe not utf-8 \x00", b"   \n"], ids=["empty", "latin", "blank"]
)
def test_text_that_is_no_text(
    cli: Cli, work: Path, compressed: Path, tmp_path: Path, text_bytes: bytes
) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(text_bytes)
    result = cli("evaluate", compressed, "--text", bad, "--window", 32)
    refused(result, 1, "bad.txt", work)
