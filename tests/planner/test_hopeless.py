"""A hopeless budget is refused from the files' headers, in the words of the whole way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgesparse as es
from edgesparse.capture.outline import outline
from edgesparse.errors import BudgetExceeded
from edgesparse.planner.hopeless import refuse_hopeless

transformers = pytest.importorskip("transformers")

BUNDLED = Path(__file__).parents[2] / "examples" / "models" / "classics-4m"
SIZES = {
    "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILY = {
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "untied": ("Llama", {"tie_word_embeddings": False}),
    "biases": ("Qwen2", {"tie_word_embeddings": True}),
    "norms": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    "experts": ("Mixtral", {"tie_word_embeddings": True, **EXPERTS}),
}


def written(kind: str, directory: Path) -> Path:
    name, more = FAMILY[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **more)
    getattr(transformers, f"{name}ForCausalLM")(config).half().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", FAMILY)
def test_the_outline_is_what_capture_finds(kind, tmp_path):
    directory = written(kind, tmp_path / "model")
    found = outline(directory)
    assert found is not None
    expected = {t.name: t for t in es.load(directory).tensors}
    assert {t.name for t in found.tensors} >= {n for n, t in expected.items() if t.compressible}
    for tensor in found.tensors:
        other = expected[tensor.name]
        assert (tensor.kind, tensor.shape, tensor.dtype, tensor.compressible, tensor.aliases) == (
            other.kind, other.shape, other.dtype, other.compressible, other.aliases,
        )  # fmt: skip


@pytest.mark.parametrize("target", [None, "executorch", "coreml"])
def test_it_says_what_the_whole_way_says(target):
    budget = es.Budget(file="300kB")
    with pytest.raises(BudgetExceeded) as quick:
        refuse_hopeless(str(BUNDLED), None, budget, target)
    with pytest.raises(BudgetExceeded) as whole:
        es.plan(es.load(BUNDLED), budget=budget, target=target)
    assert str(quick.value) == str(whole.value)
    assert quick.value.smallest_nbytes == whole.value.smallest_nbytes


def test_what_can_be_kept_is_left_to_the_plan():
    refuse_hopeless(str(BUNDLED), None, es.Budget(file="2MB"), None)
    refuse_hopeless(str(BUNDLED), None, es.Budget(peak="1kB"), None)
    refuse_hopeless("no.such.module:factory", None, es.Budget(file="1kB"), None)


def test_rules_by_name_are_left_to_the_plan():
    rule = es.Rule(name="*.gate_proj.weight", bits=4)
    refuse_hopeless(str(BUNDLED), es.Recipe((rule,)), es.Budget(file="1kB"), None)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 3},
        {"architectures": ["LlamaModel"]},
        {"architectures": None},
        {"tie_word_embeddings": "yes"},
    ],
    ids=str,
)
def test_a_configuration_that_means_another_model_has_no_outline(change, tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **change}), encoding="utf-8")
    assert outline(tmp_path / "model") is None


def test_damage_is_left_to_capture(tmp_path):
    shutil.copytree(BUNDLED, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert outline(tmp_path / "model") is None
    assert outline(tmp_path / "nothing") is None


@pytest.mark.parametrize("verb", [["plan"], ["compress", "-o", "small"]], ids=lambda v: v[0])
def test_the_command_imports_neither_torch_nor_transformers(verb, tmp_path):
    program = (
        "import sys\n"
        "from edgesparse.cli import main\n"
        "try:\n"
        f"    main({[*verb, str(BUNDLED), '--budget', 'file=300kB']!r})\n"
        "finally:\n"
        "    print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 3
    assert ran.stdout.strip() == "[]"
    assert "largest tensors" in ran.stderr
    assert not list(tmp_path.iterdir())
