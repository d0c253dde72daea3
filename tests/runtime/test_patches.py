"""A convolution whose kernel is its stride is a linear layer at every patch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgesparse
from edgesparse.pointwise import at_every_patch, is_patchwise, is_pointwise
from edgesparse.recipe import Recipe, Rule
from edgesparse.store import load

PATCHES = [
    (nn.Conv2d(3, 20, 4, stride=4), (2, 3, 8, 12)),
    (nn.Conv2d(3, 20, 4, stride=4, bias=False), (3, 11, 7)),  # three and one are left over
    (nn.Conv2d(5, 7, (2, 3), stride=(2, 3)), (1, 5, 9, 8)),
    (nn.Conv2d(5, 7, (1, 3), stride=(1, 3), padding="valid"), (2, 5, 2, 3)),
    (nn.Conv1d(6, 9, 5, stride=5), (2, 6, 23)),
    (nn.Conv1d(6, 9, 2, stride=2), (6, 7)),
]
OTHERS = [
    nn.Conv2d(3, 8, 4, stride=2),
    nn.Conv2d(3, 8, 4, stride=5),
    nn.Conv2d(3, 8, 4, stride=4, padding=1),
    nn.Conv2d(3, 8, (4, 2), stride=(4, 4)),
    nn.Conv2d(3, 8, 4, stride=4, dilation=2),
    nn.Conv2d(4, 8, 4, stride=4, groups=2),
    nn.Conv2d(3, 8, 1),
    nn.ConvTranspose2d(3, 8, 4, stride=4),
    nn.Linear(4, 4),
]


@pytest.mark.parametrize(("convolution", "shape"), PATCHES, ids=str)
def test_it_is_the_same_as_the_convolution(convolution, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    assert is_patchwise(convolution)
    matrix, bias = convolution.weight.flatten(1), convolution.bias
    found = at_every_patch(
        lambda rows: nn.functional.linear(rows, matrix, bias), x, convolution.kernel_size
    )
    torch.testing.assert_close(found, convolution(x))


def test_one_patch_by_hand():
    """Channels first, then rows, then columns: as the kernel lies in memory."""
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    found = at_every_patch(lambda rows: rows, x, (2, 2))
    assert found.shape == (1, 8, 1, 1)
    assert found.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("module", OTHERS, ids=str)
def test_others_are_not(module):
    assert not is_patchwise(module)


def test_a_1x1_convolution_is_the_other_kind():
    assert is_pointwise(nn.Conv2d(3, 8, 1))
    assert not is_pointwise(nn.Conv2d(3, 8, 4, stride=4))


class Shared(nn.Module):
    """One kernel used by patches, another by patches and by windows that overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.one = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(3, 8, 4, stride=4)
        self.two = nn.Conv2d(3, 8, 4, stride=2)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.alone(x), self.one(x), self.two(x)


def test_a_model_knows_its_patches_and_keeps_knowing(tmp_path):
    model = edgesparse.load(Shared().eval(), example_inputs=torch.zeros(1, 3, 8, 8))
    assert {t.name for t in model.tensors if t.patchwise} == {"alone.weight"}
    rule = Rule(bits=4, group_size=16, quantizer="rtn")
    compressed = edgesparse.compress(model, edgesparse.plan(model, Recipe((rule,))))
    compressed.save(tmp_path / "small")
    read = load(tmp_path / "small", source=model)
    assert {t.name for t in read.captured.tensors if t.patchwise} == {"alone.weight"}
    assert read.plan == compressed.plan
