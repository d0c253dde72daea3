"""Outputs told again: once for each batch, never stale, the same to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from edgesparse.calibrate import Resources, Statistic, Statistics, calibrate
from edgesparse.calibrate.replay import Room

CPU = torch.device("cpu")
DENSE = frozenset({Statistic.HESSIAN, Statistic.DENSE_TARGET})
ROOMS = {"nothing is kept": 0, "some is kept": 3000, "all is kept": 1 << 30}


class Counting(nn.Linear):
    """A linear that counts how often any of them runs."""

    runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counting.runs += 1
        return super().forward(x)


class Attention(nn.Module):
    """Three linears with one input, attention, and a linear behind it."""

    def __init__(self, width: int, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.q, self.k, self.v = (linear(width, width) for _ in range(3))
        self.out = linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (part(x)[:, None] for part in (self.q, self.k, self.v))
        return self.out(scaled_dot_product_attention(*heads)[:, 0])


class Plain(nn.Module):
    """A block as in a language model."""

    def __init__(self, width: int = 8, linear: type[nn.Linear] = Counting) -> None:
        super().__init__()
        self.attention = Attention(width, linear)
        self.up, self.down = linear(width, 2 * width), linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.down(torch.tanh(self.up(x)))


class InPlace(Plain):
    """What a linear returned is changed where it lies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x).add_(x)
        return x + self.down(self.up(x).tanh_()).mul_(0.5)


class Noting(Attention):
    """Leaves something on itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x.mean()
        return super().forward(x)


class Remembering(Plain):
    """A part leaves something on itself that the block reads after it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Noting(8, Counting)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 + self.attention.last)


class Routed(Plain):
    """Positive samples go one way, negative ones another, in this order or that."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(Counting(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        parts = x.sum(-1).mul(3).long() % 3
        rows = [x[parts == i] for i in range(3)]
        mixed = torch.zeros_like(x)
        for i in (2, 0, 1) if x.mean() > 0 else (0, 1, 2):
            if len(rows[i]):
                mixed[parts == i] = self.ways[i](rows[i])
        return x + self.down(torch.tanh(self.up(mixed)))


class Tied(Plain):
    """Two linears of one weight, far from each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention.out.weight = self.attention.q.weight


BLOCKS: list[Callable[[], nn.Module]] = [Plain, InPlace, Remembering, Routed, Tied]


def statistics_of(block: Callable[[], nn.Module], nbytes: int, *, chained: bool) -> list[Any]:
    """What every group of a model of two blocks is solved on, and the weights in the end."""
    torch.manual_seed(0)
    model = nn.Sequential(*[block() for _ in range(2 if chained else 1)]).eval()
    if not chained:
        model = nn.ModuleDict({"only": model[0]})
        model.forward = lambda x: model["only"](x)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    key = "input" if chained else "x"
    batches = [{key: torch.randn(2, 6, 8, generator=generator)} for _ in range(4)]
    found: list[Any] = []

    def solve(modules: tuple[str, ...], statistics: Statistics) -> None:
        found.append((modules, statistics.samples, statistics.hessian, statistics.dense_cross))
        for module in modules:
            model.get_submodule(module).weight.mul_(0.7)

    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    Counting.runs = 0
    resources = Resources(device=CPU, room=Room(nbytes))
    calibrate(model, batches, dict.fromkeys(names, DENSE), solve, resources=resources)
    return found


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_what_layers_are_solved_on_is_the_same_to_the_bit(
    block: Callable[[], nn.Module], chained: bool, room: int
) -> None:
    wanted = statistics_of(block, 0, chained=chained)
    found = statistics_of(block, room, chained=chained)
    assert len(found) >= 4
    for (modules, samples, *sums), (others, count, *theirs) in zip(found, wanted, strict=True):
        assert (modules, samples) == (others, count)
        for own, other in zip(sums, theirs, strict=True):
            assert own is other is None or torch.equal(own, other)


def test_every_layer_runs_once_for_a_batch_of_each_model() -> None:
    statistics_of(Plain, 1 << 30, chained=True)
    # 6 layers, 4 batches, 2 models: all of the first block, in the last all before the last group,
    # and before that once to see the order.
    assert Counting.runs == 6 * 4 * 2 + 5 * 4 * 2 + 12
    statistics_of(Plain, 0, chained=True)
    assert Counting.runs > 150


def test_room_is_given_back() -> None:
    room = Room(1 << 20)
    model = nn.Sequential(Plain(), Plain()).eval().requires_grad_(False)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    batch = {"input": torch.randn(2, 6, 8)}
    resources = Resources(device=CPU, room=room)
    seen: list[int] = []

    def solve(modules: tuple[str, ...], _: Statistics) -> None:
        seen.append(room.nbytes)

    calibrate(model, [batch], dict.fromkeys(names, DENSE), solve, resources=resources)
    assert min(seen) < 1 << 20
    assert seen[4] == seen[0] == 1 << 20  # the first group of either block


def test_a_language_model_comes_out_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    import edgesparse as es

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    captured = es.load(LlamaForCausalLM(config).eval())
    rule = es.Rule(bits=4, group_size=16, pattern=es.Pattern(sparsity=0.5), method="sparsegpt")
    plan = es.plan(captured, es.Recipe((rule,)))
    tokens = torch.randint(0, 60, (640,), generator=torch.Generator().manual_seed(0))
    kept = es.compress(captured, plan, tokens, window=32)
    monkeypatch.setattr(Room, "on", lambda _: Room(0))
    again = es.compress(captured, plan, tokens, window=32)
    assert kept.errors == again.errors
    for name, packed in kept.packed.items():
        assert (packed.decode() == again.packed[name].decode()).all()
