"""Models small enough that a whole compression takes a second."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from edgesparse.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
EDGESPARSE = Path(sys.executable).parent / "edgesparse"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the installed command as a process of its own, in the directory ``cwd``."""

    def run(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [EDGESPARSE, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **ONE_THREAD},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts background jobs with SIGINT ignored, which processes inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return run


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random Llama of two layers with the bundled tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).half().save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "models" / "classics-4m" / name, path)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return some 2,000 tokens of English."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    whole = (EXAMPLES / "data" / "calibration.txt").read_text(encoding="utf-8")
    path.write_text(whole[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def compressed(language_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the random Llama, compressed to half of its weights in 4 bits."""
    path = tmp_path_factory.mktemp("compressed") / "tiny"
    result = CliRunner().invoke(
        main,
        [
            "compress", str(language_model), "-o", str(path), "--calibration", str(text),
            "--sparsity", "0.5", "--bits", "4", "--group-size", "32", "--window", "32",
            "--budget", "file=400kB",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return path
