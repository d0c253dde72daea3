"""Masks that grow during recovery: they end as the pattern says, and never give back a weight."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.recovery import recover
from edgesparse.recovery.gradual import GrowingMasks
from edgesparse.recovery.latent import LatentWeight

HALF = es.Pattern(sparsity=0.5)
DATA = [torch.randn(16, 32, generator=torch.Generator().manual_seed(i)) for i in range(8)]


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    return es.load(model, example_inputs=torch.zeros(1, 32))


def small(captured: CapturedModel, pattern: es.Pattern, bits: int = 4) -> CompressedModel:
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=pattern, method="magnitude", quantizer="rtn",
        bits=bits, group_size=16,
    )  # fmt: skip
    return es.compress(captured, es.plan(captured, es.Recipe((rule,))))


@pytest.mark.parametrize(
    ("text", "sparsity"), [("unstructured", 0.5), ("2:4", 0.5), ("16x1", 0.5), ("16:64", 0.75)]
)
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_masks_end_as_the_pattern_says(
    captured: CapturedModel, text: str, sparsity: float, steps: int
) -> None:
    before = small(captured, es.Pattern.parse(text, sparsity=sparsity))
    after = recover(before, data=DATA, steps=steps, lr=4e-3, gradual=0.5)
    for name, packed in before.packed.items():
        wanted, found = packed.codes.keep_mask, after.packed[name].codes.keep_mask
        assert found.sum() == wanted.sum()
        assert after.packed[name].spec == packed.spec
    assert after.sparsity == before.sparsity


def test_by_hand_what_the_loss_would_miss_least_goes_first_and_stays_away(
    captured: CapturedModel,
) -> None:
    packed = next(iter(small(captured, HALF, 16).packed.values()))
    latent = LatentWeight(packed)
    latent.restart(torch.ones(64, 32))
    optimizer = torch.optim.Adam([latent.values])
    moment = torch.full((64, 32), 4.0)
    moment[:, :16] = 1.0  # removing these costs a quarter
    optimizer.state[latent.values] = {"exp_avg_sq": moment}
    masks = GrowingMasks([(latent, HALF)], until=0.5)
    masks.advance(10, 0.25, optimizer)  # half of the way: 1 - (1/2)³ of the sparsity is reached
    assert int((~latent.keep_mask).sum()) == int(0.5 * 7 / 8 * 64 * 32)
    assert bool(latent.keep_mask[:, 16:].all())
    removed = ~latent.keep_mask
    moment[:, :16] = 9.0  # now these would be missed most, but what is gone is gone
    masks.advance(11, 0.3, optimizer)  # not a tenth step: nothing happens
    assert torch.equal(removed, ~latent.keep_mask)
    masks.advance(20, 0.5, optimizer)
    assert masks.is_complete
    assert not bool(latent.keep_mask[removed].any())
    assert int(latent.keep_mask.sum()) == 32 * 32


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    captured: CapturedModel, tmp_path: Path
) -> None:
    before, file = small(captured, HALF), tmp_path / "state.safetensors"
    options = {"data": DATA, "lr": 4e-3, "gradual": 0.6, "steps": 50}
    whole = recover(before, **options)

    class Interrupted(Exception):
        pass

    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) == 25:
            raise Interrupted

    with pytest.raises(Interrupted):
        recover(before, checkpoint=file, progress=stop, **options)
    resumed = recover(before, checkpoint=file, **options)
    for name, packed in whole.packed.items():
        assert np.array_equal(packed.decode(), resumed.packed[name].decode())


@pytest.mark.parametrize("option", [{"gradual": -0.1}, {"gradual": 1.0}, {"noise": 1.0}])
def test_a_fraction_that_is_none_is_refused(
    captured: CapturedModel, option: dict[str, float]
) -> None:
    with pytest.raises(UsageError, match="at least 0 and less than 1"):
        recover(small(captured, HALF), data=DATA, steps=1, **option)
