"""Structured pruning: the cut model is the whole one with the removed channels held at zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgesparse
from edgesparse.errors import OutputExists, RecipeError, UsageError
from edgesparse.structured import (
    Cuts,
    Part,
    cut,
    find_groups,
    prune_structured,
    write_model,
    zero_removed,
)
from edgesparse.structured.importance import wanda
from edgesparse.structured.surgery import kept_channels


class Gated(nn.Module):
    """A gated feed-forward block in a residual stream with a norm: only the inside can be cut."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.gate, self.up = nn.Linear(16, 40, bias=False), nn.Linear(16, 40)
        self.down = nn.Linear(40, 16)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Residual(nn.Module):
    """Convolutions with batch norm, a residual sum, a depthwise one, pooling and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(24)
        self.inner = nn.Conv2d(24, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm = nn.BatchNorm2d(32)
        self.outer = nn.Conv2d(32, 24, 1)
        self.classes = nn.Linear(24, 5)

    def forward(self, x):
        x = functional.relu6(self.stem_norm(self.stem(x)))
        y = functional.hardswish(self.norm(self.depthwise(self.inner(x))))
        x = functional.max_pool2d(x + self.outer(y), 2)
        return self.classes(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Grouped(nn.Module):
    """Grouped convolutions mix channels within groups: neither side can be cut alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(8, 16, 1), nn.Conv1d(16, 16, 3, groups=4)

    def forward(self, x):
        return self.second(self.first(x).relu())


class Shared(nn.Module):
    """One layer applied twice: its channels read what it makes."""

    def __init__(self):
        super().__init__()
        self.again, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.again(self.again(x).relu()).relu())


CASES = {"gated": (Gated, (2, 7, 16)), "residual": (Residual, (2, 3, 8, 8))}


def capture(case):
    torch.manual_seed(0)
    build, shape = CASES[case]
    module = build().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight)
            nn.init.uniform_(layer.bias)
    return edgesparse.load(module, example_inputs={"x": torch.randn(shape)})


def names(group):
    return {(member.name, member.dim, member.reads) for member in group.members}


class TestGroups:
    def test_a_gated_block(self):
        (group,) = find_groups(capture("gated"))
        assert group.size == 40
        assert names(group) == {
            ("gate.weight", 0, False), ("up.weight", 0, False), ("up.bias", 0, False),
            ("down.weight", 1, True),
        }  # fmt: skip

    def test_a_residual_network(self):
        inner, stream = sorted(find_groups(capture("residual")), key=lambda g: -g.size)
        assert names(inner) == {
            ("inner.weight", 0, False), ("inner.bias", 0, False),
            ("depthwise.weight", 0, False), ("depthwise.bias", 0, False),
            ("norm.weight", 0, False), ("norm.bias", 0, False),
            ("norm.running_mean", 0, False), ("norm.running_var", 0, False),
            ("outer.weight", 1, True),
        }  # fmt: skip
        assert {("stem.weight", 0, False), ("outer.weight", 0, False)} < names(stream)
        assert {m.name for m in stream.readers} == {"inner.weight", "classes.weight"}

    @pytest.mark.parametrize(
        ("module", "shape"),
        [(Grouped(), (1, 8, 9)), (Shared(), (1, 16)), (nn.Linear(4, 4), (1, 4))],
    )
    def test_what_cannot_be_cut_is_left_out(self, module, shape):
        captured = edgesparse.load(module.eval(), example_inputs=torch.randn(shape))
        assert find_groups(captured) == ()

    def test_a_llama(self, llama):
        groups = find_groups(llama)
        found = sorted((group.part, group.size, len(group.members)) for group in groups)
        # Heads: queries, keys, values, output. The stream: 2 x 9 in the layers, head, last norm.
        assert found == [
            (Part.CHANNELS, 48, 3), (Part.CHANNELS, 48, 3),
            (Part.HEADS, 2, 4), (Part.HEADS, 2, 4), (Part.WIDTH, 32, 21),
        ]  # fmt: skip


@pytest.fixture
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=64, max_position_embeddings=32,
    )  # fmt: skip
    return edgesparse.load(transformers.AutoModelForCausalLM.from_config(config).half())


class TestWriting:
    def test_a_cut_llama_is_a_model_directory(self, llama, tmp_path):
        small = prune_structured(llama, Cuts(channels=0.5))
        assert small.task == "causal-lm"
        again = edgesparse.load(write_model(small, tmp_path / "small"))
        assert again.config["intermediate_size"] == 24
        assert {t.dtype for t in again.tensors} == {"float16"}
        tokens = torch.arange(9)[None]
        torch.testing.assert_close(
            again.loader().float()(tokens).logits, small.loader().float()(tokens).logits
        )

    def test_layers_of_different_sizes_have_no_configuration(self, llama, tmp_path):
        module = llama.loader()
        first = next(group for group in find_groups(llama) if group.part is Part.CHANNELS)
        cut(module, {first: torch.arange(8)})
        small = edgesparse.load(module)
        with pytest.raises(UsageError, match="cannot say the shapes"):
            write_model(small, tmp_path / "small")
        assert not (tmp_path / "small").exists()

    def test_other_modules_are_refused(self, tmp_path):
        with pytest.raises(UsageError, match="no transformers model"):
            write_model(capture("gated"), tmp_path / "small")

    def test_nothing_is_replaced(self, llama, tmp_path):
        with pytest.raises(OutputExists):
            write_model(prune_structured(llama, Cuts(channels=0.5)), tmp_path)


class TestCut:
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_whole_with_the_channels_at_zero(self, case, seed):
        captured = capture(case)
        torch.manual_seed(seed)
        keep = {}
        for group in find_groups(captured):
            count = int(torch.randint(1, group.size, ()))
            keep[group] = torch.randperm(group.size)[:count].sort().values
        small, whole = captured.loader(), captured.loader()
        cut(small, keep)
        zero_removed(whole, keep)
        x = torch.randn(CASES[case][1])
        torch.testing.assert_close(small(x), whole(x), rtol=1e-5, atol=1e-5)

    def test_the_module_says_its_new_sizes(self):
        captured = capture("residual")
        module = captured.loader()
        inner = max(find_groups(captured), key=lambda group: group.size)
        cut(module, {inner: torch.arange(10)})
        assert (module.inner.out_channels, module.outer.in_channels) == (10, 10)
        assert (module.depthwise.groups, module.depthwise.in_channels) == (10, 10)
        assert module.norm.num_features == 10
        assert module.norm.running_mean.shape == (10,)

    def test_the_highest_scores_stay(self):
        assert kept_channels(torch.tensor([3.0, 1.0, 2.0, 3.0]), 2).tolist() == [0, 3]


class TestPruning:
    @pytest.mark.parametrize("case", CASES)
    def test_the_result_is_an_ordinary_smaller_model(self, case):
        captured = capture(case)
        small = prune_structured(captured, Cuts(channels=0.5))
        assert small.num_parameters < captured.num_parameters
        output = small.loader()(**captured.example_inputs)
        assert output.shape == captured.loader()(**captured.example_inputs).shape
        assert edgesparse.plan(small).nbytes < edgesparse.plan(captured).nbytes

    def test_the_original_is_not_changed(self):
        captured = capture("gated")
        before = copy.deepcopy(dict(captured.weights()))
        prune_structured(captured, Cuts(channels=0.75))
        for name, value in captured.weights().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    def test_sizes_are_rounded_up(self):
        small = prune_structured(capture("gated"), Cuts(channels=0.7), multiple=8)
        assert small.by_name["gate.weight"].shape == (16, 16)

    def test_refitting_brings_the_output_closer(self):
        captured = capture("gated")
        inputs = [{"x": torch.randn(16, 7, 16)}]
        dense = captured.loader()(**inputs[0])

        def error(refit):
            small = prune_structured(captured, Cuts(channels=0.5), calibration=inputs, refit=refit)
            return float((small.loader()(**inputs[0]) - dense).norm())

        assert error(True) < 0.9 * error(False)

    def test_dead_channels_go_first(self):
        captured = capture("gated")
        module = captured.loader()
        module.down.weight.data[:, ::2] = 0
        (group,) = find_groups(captured, module)
        scores = wanda(module, group, {})
        assert (kept_channels(scores, 20) % 2 == 1).all()

    @pytest.mark.parametrize("options", [{"channels": -0.1}, {"heads": 1.0}, {"layers": -1}, {}])
    def test_cuts_out_of_range_are_refused(self, options):
        with pytest.raises(RecipeError):
            Cuts(**options)

    @pytest.mark.parametrize("options", [{"multiple": 0}, {"importance": "fame"}])
    def test_options_out_of_range_are_refused(self, options):
        with pytest.raises(RecipeError):
            prune_structured(capture("gated"), Cuts(channels=0.5), **options)

    def test_nothing_to_cut_says_why(self):
        captured = edgesparse.load(nn.Linear(4, 4), example_inputs=torch.zeros(1, 4))
        with pytest.raises(UsageError, match="no channels that can be cut"):
            prune_structured(captured, Cuts(channels=0.5))
