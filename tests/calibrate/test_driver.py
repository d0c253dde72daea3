"""The driver: what a layer's statistics are sums over, in which order."""

import logging

import pytest
import torch
from torch import nn

from edgesparse.calibrate import Resources, Statistic, Statistics, calibrate
from edgesparse.calibrate.inputs import as_matrix, input_rows
from edgesparse.calibrate.record import find_chain, groups_of, record
from edgesparse.errors import CalibrationError

CPU = torch.device("cpu")
HESSIAN = frozenset({Statistic.HESSIAN})
DENSE = frozenset({Statistic.HESSIAN, Statistic.DENSE_TARGET})


class Block(nn.Module):
    """Two linears with one input, one behind them; returns a tuple as many models do."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.bias = bias

    def forward(self, x: torch.Tensor, *, shift: torch.Tensor) -> tuple[torch.Tensor, None]:
        mixed = torch.tanh(self.left(x)) * self.right(x) + self.bias + shift
        return x + self.out(mixed), None


class Chained(nn.Module):
    """A stem, a chain of blocks and a head."""

    def __init__(self, width: int = 6, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Block(width, i / 10) for i in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, shift = self.stem(x), x.mean()
        for block in self.blocks:
            hidden = block(hidden, shift=shift)[0]
        return self.head(hidden)


class Skipping(Chained):
    """The same parts, but the last block also sees the first's input: no chain."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = hidden = self.stem(x)
        for block in self.blocks:
            hidden = block(hidden, shift=x.mean())[0] + first
        return self.head(hidden)


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(5, 4, generator=generator)} for _ in range(count)]


def expected(model: nn.Module, module: str) -> torch.Tensor:
    """XᵀX of a module's inputs, by running the model as it now is."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    with torch.no_grad():
        for batch in batches():
            model(**batch)
    handle.remove()
    X = torch.cat(seen)
    return X.T @ X


@pytest.mark.parametrize("kind", [Chained, Skipping])
def test_every_layer_is_solved_in_order_on_the_inputs_it_then_has(kind: type[Chained]) -> None:
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    order: list[tuple[str, ...]] = []

    def solve(modules: tuple[str, ...], statistics: Statistics) -> None:
        order.append(modules)
        assert statistics.samples == 15
        assert torch.allclose(statistics.second_moment(), expected(model, modules[0]), atol=1e-4)
        for module in modules:
            model.get_submodule(module).weight.mul_(0.7)

    calibrate(
        model,
        batches(),
        dict.fromkeys(linears(model), HESSIAN),
        solve,
        resources=Resources(device=CPU),
    )
    assert order[0] == ("stem",)
    assert order[-1] == ("head",)
    assert order[1:3] == [("blocks.0.left", "blocks.0.right"), ("blocks.0.out",)]
    assert len(order) == 8


@pytest.mark.parametrize("kind", [Chained, Skipping])
def test_the_dense_target_makes_up_for_what_went_before(kind: type[Chained]) -> None:
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    original = kind().eval().requires_grad_(False)
    original.load_state_dict(model.state_dict())

    def solve(modules: tuple[str, ...], statistics: Statistics) -> None:
        for module in modules:
            parameter = model.get_submodule(module).weight
            parameter.copy_(statistics.retargeted(parameter, damping=1e-6))
            if module == "stem":
                parameter.mul_(0.8)

    calibrate(
        model,
        batches(),
        dict.fromkeys(linears(model), DENSE),
        solve,
        resources=Resources(device=CPU),
    )
    broken = kind().eval().requires_grad_(False)
    broken.load_state_dict(original.state_dict())
    broken.stem.weight.mul_(0.8)
    with torch.no_grad():
        wanted, repaired, left = (m(batches()[0]["x"]) for m in (original, model, broken))
    assert (repaired - wanted).square().sum() < 0.5 * (left - wanted).square().sum()


def test_a_chain_is_seen_from_the_tensors_passed_not_from_names() -> None:
    for kind, found in ((Chained, True), (Skipping, False)):
        model = kind().eval()
        names = linears(model)
        with torch.no_grad():
            recording = record(model, {"x": torch.randn(1, 4)}, names, CPU)
        chain = find_chain(model, recording, names)
        assert (chain is not None) == found
        if chain is not None:
            assert chain.blocks == ("blocks.0", "blocks.1", "blocks.2")
            assert (chain.hidden, chain.tuple_length) == (0, 2)


def test_a_model_without_a_chain_says_that_it_is_run_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Skipping().eval().requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="edgesparse"):
        calibrate(
            model, batches(1), {"head": HESSIAN}, lambda *_: None, resources=Resources(device=CPU)
        )
    assert "the whole model runs" in caplog.text


def test_nan_activations_name_the_layer() -> None:
    model = Chained().eval().requires_grad_(False)
    model.blocks[1].bias = float("nan")
    with pytest.raises(CalibrationError, match=r"blocks\.1\.out: the inputs are NaN or infinite"):
        calibrate(
            model,
            batches(),
            dict.fromkeys(linears(model), HESSIAN),
            lambda *_: None,
            resources=Resources(device=CPU),
        )


def test_a_module_that_runs_twice_is_summed_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(torch.relu(self.shared(x)))

    found: list[Statistics] = []
    model = Twice().eval().requires_grad_(False)
    calibrate(
        model,
        batches(),
        {"shared": HESSIAN},
        lambda _, s: found.append(s),
        resources=Resources(device=CPU),
    )
    assert found[0].samples == 2 * 15
    assert torch.allclose(found[0].second_moment(), expected(model, "shared"), atol=1e-4)


def test_a_module_no_sample_reaches_has_empty_statistics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Idle(Chained):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    model = Idle().eval().requires_grad_(False)
    found: dict[str, int] = {}
    with caplog.at_level(logging.WARNING, logger="edgesparse"):
        calibrate(
            model,
            batches(),
            dict.fromkeys(linears(model), HESSIAN),
            lambda modules, s: found.update(dict.fromkeys(modules, s.samples)),
            resources=Resources(device=CPU),
        )
    assert found["unused"] == 0
    assert "unused: no calibration sample reaches it" in caplog.text


def test_without_batches_everything_is_solved_with_empty_statistics() -> None:
    seen: list[str] = []
    model = Chained()
    calibrate(
        model, [], dict.fromkeys(linears(model), frozenset()),
        lambda modules, s: seen.extend(modules) if s.samples == 0 else None,
        resources=Resources(device=CPU),
    )  # fmt: skip
    assert sorted(seen) == sorted(linears(model))


def test_modules_that_share_an_input_are_one_group() -> None:
    model = Chained()
    names = linears(model)
    recording = record(model, {"x": torch.randn(2, 4)}, names, CPU)
    groups = [group.modules for group in groups_of(recording, names)]
    assert ("blocks.2.left", "blocks.2.right") in groups


CONVS = [
    nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, (3, 2), stride=2, padding=(1, 2), dilation=(2, 1)),
    nn.Conv2d(3, 5, 4, padding="same", padding_mode="reflect"), nn.Conv1d(3, 5, 3, padding=1),
    nn.Conv1d(3, 5, 4, stride=2, padding="valid"), nn.Conv2d(3, 5, 3, padding=2,
    padding_mode="circular"), nn.Conv1d(3, 5, 2, padding=1, padding_mode="replicate"),
]  # fmt: skip


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_convolution_is_its_patches_times_its_matrix(conv: nn.Conv1d | nn.Conv2d) -> None:
    spatial = (9, 8)[: len(conv.kernel_size)]
    x = torch.randn(2, 3, *spatial)
    with torch.no_grad():
        wanted = conv(x) - conv.bias.reshape(-1, *[1] * len(spatial))
        found = input_rows(conv, x) @ as_matrix(conv.weight).T
    assert torch.allclose(found, wanted.flatten(2).transpose(1, 2).reshape(-1, 5), atol=1e-5)


class TwoPlaces(nn.Module):
    """One linear that runs in two places: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"layer": nn.Linear(4, 4)})
        self.second = nn.ModuleDict({"layer": self.first["layer"]})
        self.head = nn.Linear(4, 4)
        self.head.weight = self.first["layer"].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.second["layer"](self.first["layer"](x)))
        return y


def test_the_dense_twin_of_a_module_in_two_places_keeps_its_first_weights() -> None:
    torch.manual_seed(0)
    model, found = TwoPlaces().eval(), []
    wanted = expected(model, "head")

    def solve(modules: tuple[str, ...], statistics: Statistics) -> None:
        with torch.no_grad():
            model.get_submodule(modules[0]).weight.zero_()  # type: ignore[union-attr, operator]
        found.append(statistics.dense_cross)

    resources = Resources(device=CPU)
    calibrate(model, batches(), {"head": DENSE}, solve, resources=resources)
    torch.testing.assert_close(found[0], wanted)
