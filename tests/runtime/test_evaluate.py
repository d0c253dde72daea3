"""Evaluation: hand-worked scores, and the bundled model end to end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import edgesparse
from edgesparse.errors import SourceError, UsageError
from edgesparse.model import CapturedModel
from edgesparse.pattern import Pattern
from edgesparse.recipe import Recipe, Rule
from edgesparse.runtime import compare, evaluate
from edgesparse.runtime.score import Tally

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "examples/data/validation.txt"


@pytest.fixture(scope="module")
def classics():
    return edgesparse.load(ROOT / "examples/models/classics-4m")


class TestTally:
    def test_worked_by_hand(self):
        # Two predictions among two tokens. p = (3/4, 1/4) then (1/2, 1/2); q is uniform.
        tokens = torch.tensor([0, 0, 1])
        dense = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 1.0]]))
        own = torch.zeros(3, 2)
        tally = Tally()
        tally.add(tokens, own, dense)
        means = tally.means(compared=True)
        assert tally.count == 2
        assert means["perplexity"] == pytest.approx(2.0)
        assert means["dense_perplexity"] == pytest.approx(1 / math.sqrt(0.75 * 0.5))
        kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert means["kl"] == pytest.approx(kl / 2, rel=1e-6)
        assert means["top1_agreement"] == 1.0

    def test_long_windows_add_up_like_one_sum(self):
        torch.manual_seed(0)
        tokens = torch.randint(0, 50, (700,))
        own, dense = torch.randn(700, 50), torch.randn(700, 50)
        tally = Tally()
        tally.add(tokens, own, dense)
        means = tally.means(compared=True)
        p, q = dense[:-1].double().log_softmax(-1), own[:-1].double().log_softmax(-1)
        assert tally.count == 699
        assert means["perplexity"] == pytest.approx(
            float(functional.nll_loss(q, tokens[1:]).exp()), rel=1e-6
        )
        assert means["kl"] == pytest.approx(
            float(functional.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-5
        )
        agreed = (p.argmax(-1) == q.argmax(-1)).double().mean()
        assert means["top1_agreement"] == pytest.approx(float(agreed))

    def test_equal_models_do_not_diverge(self):
        torch.manual_seed(0)
        logits = torch.randn(20, 30)
        tally = Tally()
        tally.add(torch.randint(0, 30, (20,)), logits, logits.clone())
        assert tally.means(compared=True)["kl"] == 0.0

    def test_without_a_dense_model_there_is_nothing_to_compare(self):
        tally = Tally()
        tally.add(torch.tensor([0, 1]), torch.zeros(2, 4), None)
        assert tally.means(compared=False) == {"perplexity": pytest.approx(4.0)}


class TestText:
    def test_windows_do_not_overlap(self, classics):
        found = evaluate(classics, text=TEXT, window=64, max_windows=3)
        assert (found.windows, found.tokens) == (3, 3 * 63)

    def test_perplexity_is_transformers_own_loss(self, classics):
        transformers = pytest.importorskip("transformers")
        tokenizers = pytest.importorskip("tokenizers")
        path = str(ROOT / "examples/models/classics-4m")
        tokens = tokenizers.Tokenizer.from_file(f"{path}/tokenizer.json").encode(TEXT.read_text())
        batch = torch.tensor(tokens.ids[: 4 * 128]).reshape(4, 128)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.no_grad():
            loss = model(input_ids=batch, labels=batch).loss
        found = evaluate(classics, text=TEXT, window=128, max_windows=4)
        assert found.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)

    def test_the_dense_model_is_its_own_reference(self, classics):
        found = evaluate(classics, text=TEXT, window=64, max_windows=1)
        assert found.ratio == 1.0
        assert (found.kl, found.top1_agreement) == (0.0, 1.0)
        assert found.nbytes == classics.nbytes
        assert found.bits_per_weight == 16.0

    def test_a_compressed_model_against_its_source(self, classics, compress_random):
        recipe = Recipe((Rule(name="*layers.0.mlp.up_proj.weight", bits=4, group_size=32),))
        compressed = compress_random(classics, recipe)
        found, dense = compare([compressed, classics], text=TEXT, window=64, max_windows=2)
        assert found.dense_perplexity == dense.perplexity
        assert found.perplexity > dense.perplexity
        assert found.ratio == pytest.approx(found.perplexity / dense.perplexity)
        assert found.kl > 0
        assert 0 < found.top1_agreement < 1
        assert found.nbytes == compressed.nbytes < dense.nbytes

    def test_json_has_what_the_command_line_promises(self, classics):
        data = json.loads(json.dumps(evaluate(classics, text=TEXT, max_windows=1).to_json()))
        promised = {
            "perplexity", "dense_perplexity", "ratio", "kl", "top1_agreement", "nbytes",
            "bits_per_weight",
        }  # fmt: skip
        assert promised <= set(data)

    def test_progress_counts_windows(self, classics):
        seen = []
        evaluate(
            classics, text=TEXT, window=32, max_windows=2, progress=lambda *step: seen.append(step)
        )
        assert seen == [(1, 2), (2, 2)]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "holds no text"),
            (b" \n ", "holds no text"),
            (b"It was a dark evening", "fewer than one window of 512"),
            (b"caf\xe9", "not UTF-8 text: byte 3 is 0xe9"),
        ],
    )
    def test_a_bad_text_is_refused(self, classics, tmp_path, content, reason):
        path = tmp_path / "text.txt"
        path.write_bytes(content)
        with pytest.raises(SourceError, match=reason):
            evaluate(classics, text=path)

    def test_a_missing_text_is_refused(self, classics, tmp_path):
        with pytest.raises(SourceError, match="No such file"):
            evaluate(classics, text=tmp_path / "none.txt")
        with pytest.raises(SourceError, match="Is a directory"):
            evaluate(classics, text=tmp_path)

    @pytest.mark.parametrize("window", [0, 1, 513])
    def test_a_window_the_model_cannot_take_is_refused(self, classics, window):
        with pytest.raises(UsageError, match="at least 2 and at most the model's context of 512"):
            evaluate(classics, text=TEXT, window=window)

    def test_text_and_inputs_are_one_too_many(self, classics):
        with pytest.raises(UsageError, match="give either a text"):
            evaluate(classics, text=TEXT, inputs=[])

    def test_a_source_without_tokenizer_says_what_to_do(self, classics):
        bare = replace(classics, source=replace(classics.source, files=()))
        with pytest.raises(SourceError, match=r"no tokenizer.*inputs instead"):
            evaluate(bare, text=TEXT)

    def test_a_source_that_is_gone_is_said(self, classics, compress_random, monkeypatch):
        compressed = compress_random(classics, Recipe())

        def gone(_):
            raise SourceError("classics-4m is no longer where it was")

        monkeypatch.setattr(CapturedModel, "loader", gone)
        found = evaluate(compressed, text=TEXT, window=64, max_windows=1)
        assert found.perplexity is not None
        assert (found.dense_perplexity, found.ratio, found.kl) == (None, None, None)
        assert "no longer where it was" in found.note

    def test_nan_weights_are_not_reported_as_a_number(self, classics, compress_random):
        compressed = compress_random(classics, Recipe())
        kept = dict(compressed.kept)
        kept["model.norm.weight"] = torch.full_like(kept["model.norm.weight"], torch.nan)
        with pytest.raises(SourceError, match="logits of window 0 are not finite"):
            evaluate(replace(compressed, kept=kept), text=TEXT, window=64, max_windows=1)


class TestInputs:
    @pytest.fixture
    def linear(self):
        torch.manual_seed(0)
        module = torch.nn.Linear(64, 64, bias=False)
        return edgesparse.load(module, example_inputs={"input": torch.randn(3, 64)})

    def test_outputs_are_compared(self, linear, compress_random):
        compressed = compress_random(
            linear, Recipe((Rule(bits=4, group_size=32, pattern=Pattern(sparsity=0.5)),))
        )
        x = torch.randn(5, 64)
        found = evaluate(compressed, inputs=[{"input": x[:2]}, {"input": x[2:]}])
        dense = x @ linear.weights()["weight"].T
        own = x @ torch.from_numpy(compressed.packed["weight"].decode()).T
        error = float((own - dense).norm() / dense.norm())
        assert found.output_error == pytest.approx(error, rel=1e-5)
        cosine = float((own * dense).sum() / own.norm() / dense.norm())
        assert found.cosine == pytest.approx(cosine, abs=1e-6)
        assert found.windows == 2
        assert found.perplexity is None

    def test_example_inputs_are_the_default(self, linear):
        found = evaluate(linear)
        assert (found.windows, found.output_error) == (1, 0.0)
        assert found.cosine == pytest.approx(1.0)

    def test_text_for_a_model_without_words_is_refused(self, linear):
        with pytest.raises(UsageError, match="predicts no next token"):
            evaluate(linear, text=TEXT)
