"""Several limits at once: downloads, latency, the context of a cache, and what contradicts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import edgesparse as es
from edgesparse.budget import Budget
from edgesparse.errors import BudgetExceeded, UsageError
from edgesparse.planner import plan, speed
from edgesparse.planner.allocate import Limit, allocate
from edgesparse.planner.download import deflated_nbytes

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(random_llama):
    return random_llama(tied=True)


@pytest.fixture
def rates(monkeypatch):
    """One nanosecond for every stored bit of a weight, on every machine."""
    monkeypatch.setattr(
        speed, "_packed_rate", lambda spec, rule: rule.bits * (1 - rule.pattern.sparsity)
    )
    monkeypatch.setattr(speed, "_float_rate", lambda: 32.0)


class TestDownload:
    @pytest.mark.parametrize(("bits", "sparsity"), [(4, 0.0), (4, 0.5), (3, 0.0), (8, 0.75)])
    def test_the_prediction_is_what_deflate_makes(self, llama, bits, sparsity, tmp_path):
        rule = es.Rule(
            bits=bits, group_size=32, pattern=es.Pattern(sparsity=sparsity), method="magnitude",
            quantizer="rtn",
        )  # fmt: skip
        made = plan(llama, es.Recipe((rule,)))
        es.compress(llama, made).save(tmp_path / "small")
        found = deflated_nbytes(tmp_path / "small" / "weights.safetensors")
        assert made.download_nbytes == pytest.approx(found, rel=0.08)

    def test_a_limit_is_kept(self, llama):
        free = plan(llama, budget=Budget(file="10MB"))
        limit = free.download_nbytes // 2
        assert plan(llama, budget=Budget(download=limit)).download_nbytes <= limit

    def test_a_hopeless_one_is_refused(self, llama):
        with pytest.raises(BudgetExceeded, match=r"download 9\.00 kB, smallest reachable"):
            plan(llama, budget=Budget(download="9kB"))

    def test_a_folder_is_sent_file_by_file(self, tmp_path: Path):
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(bytes(10_000))
        one = deflated_nbytes(tmp_path / "a")
        assert 0 < one < 100
        assert deflated_nbytes(tmp_path) == 2 * one


class TestLatency:
    def test_a_limit_is_kept(self, llama, rates):
        free = plan(llama, budget=Budget(latency="1s"))
        limit = free.latency_ns // 4
        made = plan(llama, budget=Budget(latency=limit))
        assert limit / 2 < made.latency_ns <= limit
        assert made.loss > free.loss

    def test_a_tied_head_is_multiplied_with(self, llama, rates):
        rule = es.Rule(bits=4, quantizer="rtn")
        made = plan(llama, es.Recipe((rule,)), budget=Budget(latency="1s"))
        matrices = [entry for entry in made.tensors if entry.tensor.compressible]
        assert made.latency_ns == 4 * sum(entry.tensor.numel for entry in matrices)

    def test_a_token_meets_some_of_the_experts(self, rates):
        config = transformers.MixtralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=64, num_local_experts=8, num_experts_per_tok=2,
        )  # fmt: skip
        captured = es.load(transformers.MixtralForCausalLM(config).eval())
        made = plan(captured, es.Recipe((es.Rule(bits=4, quantizer="rtn"),)),
                    budget=Budget(latency="1s"))  # fmt: skip
        experts = sum(e.tensor.numel for e in made.tensors if e.tensor.kind == "expert")
        others = sum(
            e.tensor.numel * (4 if e.rule else 32)
            for e in made.tensors
            if e.tensor.kind == "linear"
        )
        assert made.latency_ns == pytest.approx(experts + others)  # 4 bits, a quarter of them

    def test_other_models_are_refused(self):
        captured = es.load(torch.nn.Linear(256, 256), example_inputs=torch.zeros(1, 256))
        with pytest.raises(UsageError, match="no language model"):
            plan(captured, budget=Budget(latency="1ms"))

    def test_this_machine_can_be_measured(self, llama):
        made = plan(llama, es.Recipe((es.Rule(bits=4, quantizer="rtn"),)),
                    budget=Budget(latency="1s"))  # fmt: skip
        assert made.latency_ns > 0


class TestContext:
    def test_the_cache_is_as_long_as_asked(self, llama):
        whole = plan(llama, budget=Budget(peak="100MB"))
        short = plan(llama, budget=Budget(peak="100MB", context=32))
        cache = {t.name: t.nbytes for t in whole.memory}["key/value cache"]
        assert cache == 2 * 2 * 2 * 64 * 128 * 4  # keys, values; layers; heads; width; tokens
        assert {t.name: t.nbytes for t in short.memory}["key/value cache"] == cache // 4

    def test_more_than_the_model_was_made_for_is_misuse(self, llama):
        with pytest.raises(UsageError, match="at most 128"):
            plan(llama, budget=Budget(peak="100MB", context=129))


class TestTogether:
    def test_all_limits_are_kept(self, llama, rates):
        free = plan(llama, budget=Budget(file="10MB", peak="100MB", latency="1s"))
        budget = Budget(
            file=free.nbytes // 2, download=free.download_nbytes // 2,
            peak=free.peak_nbytes - free.nbytes // 3, latency=free.latency_ns // 3,
        )  # fmt: skip
        made = plan(llama, budget=budget)
        assert made.nbytes <= budget.file
        assert made.download_nbytes <= budget.download
        assert made.peak_nbytes <= budget.peak
        assert made.latency_ns <= budget.latency

    def test_a_contradiction_names_the_nearest_that_can_be_kept(self):
        cheap = {"file": [1000, 9000], "peak": [9000, 1000]}
        limits = [Limit(name, 9999 * 2, [np_int(costs)] * 2, 0) for name, costs in cheap.items()]
        assert allocate([np_float([0, 1])] * 2, *limits) is not None
        from edgesparse.planner.refusal import contradiction

        tight = [Limit(limit.name, 5000, limit.costs, 0) for limit in limits]
        assert allocate([np_float([0, 1])] * 2, *tight) is None
        said = str(contradiction(tight))
        # With both at their least peak the file takes 18 kB, and the other way round.
        assert re.search(r"file=19kB or peak=19kB with the others as they are", said), said


def np_int(values):
    return torch.tensor(values).numpy()


def np_float(values):
    return torch.tensor(values, dtype=torch.float64).numpy()
