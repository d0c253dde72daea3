"""The size of a program from its plan: close to the file, and above it."""

from __future__ import annotations

import pytest
import torch
from edgesparse_converters.executorch import EXPORTER
from torch import nn

import edgesparse as es
from edgesparse.exporting import Artifact
from edgesparse.model import CompressedModel
from edgesparse.pattern import Pattern

RECIPE = es.Recipe(
    (
        es.Rule(kind="embedding", bits=4, group_size=128, quantizer="rtn"),
        es.Rule(
            kind="linear", bits=4, group_size=128, pattern=Pattern(sparsity=0.5),
            method="magnitude", quantizer="rtn",
        ),
    )
)  # fmt: skip


def test_the_bundled_model(classics: CompressedModel, classics_packed: Artifact) -> None:
    plan = es.plan(classics.captured, recipe=RECIPE)
    assert EXPORTER.predict_nbytes(plan) == pytest.approx(classics_packed.nbytes, rel=0.02)


def test_what_is_left_alone_is_float32() -> None:
    """64 x 64 weights and 64 biases of 4 bytes, and the graph."""
    captured = es.load(nn.Linear(64, 64), example_inputs=torch.zeros(1, 64))
    nbytes = EXPORTER.predict_nbytes(es.plan(captured, recipe=es.Recipe(())))
    assert 4 * (64 * 64 + 64) < nbytes < 4 * (64 * 64 + 64) + 25_000


def test_a_convolution_is_counted_decoded() -> None:
    captured = es.load(nn.Conv2d(16, 64, 3), example_inputs=torch.zeros(1, 16, 8, 8))
    rule = es.Rule(bits=4, group_size=32, quantizer="rtn")
    nbytes = EXPORTER.predict_nbytes(es.plan(captured, recipe=es.Recipe((rule,))))
    assert nbytes > 4 * 16 * 64 * 9
