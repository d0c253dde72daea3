"""Whole parts as candidates: what does nothing is cut, what matters is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.cli import main
from edgesparse.errors import BudgetExceeded
from edgesparse.planner import cutting
from edgesparse.planner.cutting import Search, best_way
from edgesparse.planner.sensitivity import measure_sensitivity
from edgesparse.structured import Cuts

transformers = pytest.importorskip("transformers")


def llama(idle_layer=False, idle_neurons=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=96, max_position_embeddings=64,
        tie_word_embeddings=True, initializer_range=0.15,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        if idle_layer:
            model.model.layers[1].self_attn.o_proj.weight.zero_()
            model.model.layers[1].mlp.down_proj.weight.zero_()
        if idle_neurons:
            for layer in model.model.layers:
                layer.mlp.down_proj.weight[:, 40:] = 0
    return model.half().float()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(96, (2, 32))} for _ in range(4)]


def search(model, inputs, size, tried=None):
    captured = es.load(model)
    sensitivity = measure_sensitivity(captured, inputs)
    said = (lambda *_: None) if tried is None else (lambda *args: tried.append(args))
    return Search(
        captured=captured, recipe=None, budget=es.Budget(file=size), target=None,
        calibration=inputs, sensitivity=sensitivity, tried=said,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_rungs(monkeypatch):
    """Half of the neurons, or one layer: each rung costs a cut and a trace."""
    monkeypatch.setattr(cutting, "SHARES", (0.5,))
    monkeypatch.setattr(cutting, "_MOST", 1)


def test_what_does_nothing_goes_and_what_matters_stays(inputs):
    tried = []
    of = search(llama(idle_layer=True), inputs, 75_000, tried)
    without = es.plan(of.captured, budget=of.budget, sensitivity=of.sensitivity)
    way = best_way(of)
    assert way.cuts is not None
    assert way.cuts.layers == 1
    assert way.loss < without.loss
    assert way.plan.nbytes <= 75_000
    assert way.captured.config["num_hidden_layers"] == 3
    assert "1 layer" in [words for words, _, _ in tried]


def test_with_room_enough_nothing_is_cut(inputs):
    tried = []
    way = best_way(search(llama(), inputs, "10MB", tried))
    assert way.cuts is None
    assert way.words == "nothing"
    assert [whole for _, _, whole in tried] == [None, None]  # each loses more than the plan alone


def test_what_no_plan_reaches_cuts_do_or_it_is_refused(inputs):
    of = search(llama(idle_neurons=True), inputs, 60_000)
    with pytest.raises(BudgetExceeded):
        es.plan(of.captured, budget=of.budget)
    way = best_way(of)
    assert way.cuts == Cuts(channels=0.5, layers=1)
    assert way.plan.nbytes <= 60_000
    with pytest.raises(BudgetExceeded, match="cutting whole parts was tried and is not enough"):
        best_way(replace(of, budget=es.Budget(file=1000)))


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path, inputs):
        llama(idle_layer=True).half().save_pretrained(tmp_path / "model")
        tokens = torch.cat([batch["input_ids"] for batch in inputs]).numpy()
        np.savez(tmp_path / "data.npz", input_ids=tokens[:, None])
        return tmp_path

    def run(self, *arguments):
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments)])
        return exit_.value.code

    def test_compress_leaves_the_cut_model_and_measures_against_the_whole(self, files, capsys):
        code = self.run(
            "compress", files / "model", "-o", files / "small", "--allow", "structured",
            "--recover", "0.005", "--budget", "75kB", "--calibration", files / "data.npz",
        )  # fmt: skip
        said = capsys.readouterr()
        assert code == 0, said.err
        assert "what is left is at" in said.err
        cut = es.load(files / "small-cut")
        assert cut.config["num_hidden_layers"] == 3
        small = es.CompressedModel.load(files / "small")
        assert small.metadata["evaluation"]["dense"]["nbytes"] > cut.nbytes

    def test_compress_exports_and_holds_the_file_to_the_plan(self, files, capsys):
        pytest.importorskip("coremltools")
        code = self.run(
            "compress", files / "model", "-o", files / "small", "--budget", "1MB", "--no-compare",
            "--export", files / "small.mlpackage", "--calibration", files / "data.npz", "--json",
        )  # fmt: skip
        said = json.loads(capsys.readouterr().out)
        assert code == 0
        (file,) = said["artifact"]["predicted"]
        assert (file["name"], file["ok"]) == ("file", True)
        assert file["found"] == said["artifact"]["nbytes"]
        assert es.CompressedModel.load(files / "small").plan.target == "coreml"

    def test_without_a_budget_there_is_nothing_to_weigh(self, files, capsys):
        code = self.run("plan", files / "model", "--allow", "structured")
        assert code == 2
        assert "--budget" in capsys.readouterr().err
