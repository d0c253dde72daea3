"""Sparse training hooks on a plain PyTorch loop, and the way from there into ``compress``."""

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.errors import UsageError
from edgesparse.model import TensorKind
from edgesparse.pattern import Pattern
from edgesparse.prune.training import L1, GradualMagnitude, SparseMomentum, cubic, weights_of


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, hook: object, steps: int) -> float:
    """Fit a fixed linear map; return the last loss."""
    generator = torch.Generator().manual_seed(1)
    wanted = torch.randn(32, 32, generator=generator) / 6
    loss = torch.zeros(())
    for step in range(steps):
        x = torch.randn(64, 32, generator=generator)
        loss = (net(x) - x @ wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hook(step)  # type: ignore[operator]
    return float(loss.detach())


def sparsities(net: nn.Module) -> list[float]:
    return [float((w == 0).float().mean()) for w in weights_of(net).values()]


def test_by_hand_the_cubic_schedule() -> None:
    assert cubic(5, 10, 20) == 0
    assert cubic(15, 10, 20) == pytest.approx(1 - 0.125)
    assert cubic(20, 10, 20) == cubic(99, 10, 20) == 1


@pytest.mark.parametrize(
    "pattern",
    [Pattern(sparsity=0.75), Pattern(keep=1, of=4), Pattern(sparsity=0.75, block=(16, 1))],
    ids=str,
)
def test_gradual_magnitude_ends_at_its_pattern_and_the_masks_hold(pattern: Pattern) -> None:
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    hook = GradualMagnitude(weights_of(net), pattern, start=20, end=120, every=10)
    train(net, optimizer, hook, 60)
    midway = sparsities(net)
    train(net, optimizer, hook, 200)
    assert all(0.2 < s < 0.76 for s in midway)
    assert sparsities(net) == pytest.approx([0.75, 0.75])
    for name, mask in hook.keep_masks().items():
        assert not weights_of(net)[name][~mask].any()


def test_a_trained_mask_is_the_one_compress_finds() -> None:
    net = model()
    hook = GradualMagnitude(weights_of(net), Pattern(sparsity=0.5), start=0, end=40, every=10)
    train(net, torch.optim.SGD(net.parameters(), lr=0.05), hook, 60)
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=Pattern(sparsity=0.5), method="magnitude", bits=16
    )
    captured = es.load(net.eval(), example_inputs=torch.zeros(1, 32))
    small = es.compress(captured, es.plan(captured, es.Recipe((rule,))))
    assert len(small.packed) == 2
    for name, packed in small.packed.items():
        assert torch.equal(torch.from_numpy(packed.codes.keep_mask), hook.keep_masks()[name])


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_sparse_momentum_keeps_the_sparsity_and_moves_the_mask(kind: str) -> None:
    net = model()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    if kind == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    hook = SparseMomentum(weights_of(net), 0.8, optimizer, end=200, every=20)
    first = hook.keep_masks()
    frozen = model()
    frozen.load_state_dict(net.state_dict())
    loss = train(net, optimizer, hook, 250)
    assert sparsities(net) == pytest.approx([0.8, 0.8], abs=0.001)
    assert any(not torch.equal(first[name], mask) for name, mask in hook.keep_masks().items())
    still = torch.optim.Adam(frozen.parameters(), lr=3e-3)
    fixed = SparseMomentum(weights_of(frozen), 0.8, still, end=1)
    if kind == "adam":
        assert loss < train(frozen, still, fixed, 250)


def test_by_hand_an_l1_step_shrinks_and_stops_at_zero() -> None:
    weight = nn.Parameter(torch.tensor([[0.5, -0.05, 0.0]]))
    L1({"w": weight}, strength=1.0)(lr=0.1)
    assert torch.allclose(weight, torch.tensor([[0.4, 0.0, 0.0]]))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="no weights"):
        GradualMagnitude({}, Pattern(sparsity=0.5), start=0, end=1)
    with pytest.raises(UsageError, match="0 <= start < end"):
        GradualMagnitude(weights_of(model()), Pattern(sparsity=0.5), start=5, end=5)
    with pytest.raises(UsageError, match="strength is 0"):
        L1(weights_of(model()), strength=0)
