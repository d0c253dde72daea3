"""The bundled model with a cache, half of its weights removed: what others make of the program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from edgesparse_converters.executorch.bundled import read_bundled

import edgesparse as es
from edgesparse.executing import stream_text
from edgesparse.exporting import Artifact
from edgesparse.model import CompressedModel

CLASSICS = Path(__file__).parents[3] / "examples" / "models" / "classics-4m"
pytestmark = pytest.mark.slow
PROMPT = "It was a dark evening when"
EXECUTORCH_SPEAKS = """
import json, sys
from pathlib import Path
from edgesparse_converters.executorch.loading import register_kernels
from edgesparse_converters.executorch.program import read_program
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
program, tokenizer, prompt, answer = sys.argv[1:]
register_kernels(read_program(Path(program)).operators)
said = []
config = GenerationConfig(echo=False, max_new_tokens=20, temperature=0.0)
TextLLMRunner(program, tokenizer).generate(prompt, config, said.append)
Path(answer).write_text(json.dumps("".join(said)))
"""


@pytest.fixture(scope="module")
def chat(classics: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("chat") / "chat.pte"
    return es.export(classics, path=path, context=32, prefill=8, cases=2)


def test_bundled_cases_begin_with_an_empty_cache(classics: CompressedModel, chat: Artifact) -> None:
    ((method, cases),) = read_bundled(chat.path.with_suffix(".bpte")).cases.items()
    assert method == "prefill"
    assert [case.inputs[0].shape for case in cases] == [(1, 8)] * 2
    assert [case.inputs[1].tolist() for case in cases] == [[0], [0]]
    verdict = es.validate(chat, classics)
    assert verdict.ok, verdict
    assert "logits of 2 bundled cases" in {check.name for check in verdict.outputs}


def test_executorchs_own_runner_says_the_same(chat: Artifact, tmp_path: Path) -> None:
    arguments = [str(chat.path), str(CLASSICS / "tokenizer.json"), PROMPT, str(tmp_path / "said")]
    command = [sys.executable, "-c", EXECUTORCH_SPEAKS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = stream_text(chat.path, PROMPT, tokenizer=CLASSICS, tokens=20, temperature=0)
    assert json.loads((tmp_path / "said").read_text()) == "".join(ours)
