"""What a runtime holds: convolutions as floats, and twice while they are repacked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.planner.peak import is_window

WIDE = 512 * 512 * 9  # weights of one convolution of 3x3


def convolutions(*kernels):
    layers = [nn.Conv2d(512, 512, k, padding=k // 2, bias=False) for k in kernels]
    return es.load(nn.Sequential(*layers), example_inputs=torch.zeros(1, 512, 2, 2))


def terms(captured, target="executorch"):
    rule = es.Rule(bits=4, group_size=128, quantizer="rtn")
    made = es.plan(captured, es.Recipe((rule,)), target=target)
    return {term.name: term.nbytes for term in made.memory}


def test_only_convolutions_that_see_more_than_one_place_are_decoded():
    kinds = {t.name: is_window(t) for t in convolutions(3, 1).tensors}
    assert kinds == {"0.weight": True, "1.weight": False}
    found = terms(convolutions(3, 1))
    packed = 512 * 512 // 2 + 512 * 4 * 2
    assert found["weights"] == pytest.approx(4 * WIDE + packed, abs=1000)


@pytest.mark.parametrize(
    ("kernels", "longest"), [((3, 3), 2), ((3, 1, 3), 1), ((3, 3, 1, 3), 2), ((1, 3, 3, 3), 3)]
)
def test_the_longest_stretch_is_held_twice_while_it_is_repacked(kernels, longest):
    found = terms(convolutions(*kernels))
    later = found["activations"] + found["runtime"] + found["graph"]
    assert found["loading"] == longest * 4 * WIDE - later
    assert found["graph"] == 13_000 * len(kernels)


def test_what_runs_later_may_be_the_most():
    assert "loading" not in terms(convolutions(1, 1))
    small = es.load(nn.Conv2d(8, 8, 3), example_inputs=torch.zeros(1, 8, 8, 8))
    assert "loading" not in terms(small)


def test_core_ml_decodes_and_repacks_nothing():
    found = terms(convolutions(3, 3), "coreml")
    assert found["weights"] == 2 * 2 * WIDE
    assert "loading" not in found
    assert "graph" not in found
