"""Compressed models made by hand: random codes in the place of every packed weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse
from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS, Codes, table_count
from edgesparse.pattern import Pattern
from edgesparse.planner import plan
from edgesparse.recipe import Recipe, Rule


class Everything(nn.Module):
    """Tied embedding, linear with bias, convolution, batch norm, attention, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.linear = nn.Linear(64, 64)
        self.convolution = nn.Conv1d(64, 64, 3, padding=1)
        self.norm = nn.BatchNorm1d(64)
        self.attention = nn.MultiheadAttention(64, 2, batch_first=True)
        self.bare = nn.Parameter(torch.randn(64, 64))
        self.head = nn.Linear(64, 40, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.linspace(0, 1, 64), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.linear(self.embedding(tokens) + self.positions)
        x = self.norm(self.convolution(x.transpose(1, 2))).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x @ self.bare.T)


def random_codes(shape, spec, seed):
    """Return codes and scales that any solver could have chosen."""
    rng = np.random.default_rng(seed)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    keep = rng.random(shape) >= spec.pattern.sparsity
    groups, extra = spec.groups(columns), {}
    scales = (rng.integers(128, 256, (rows, groups)) / 8192).astype(np.float16)
    if spec.bits == 16:
        values = (0.05 * rng.standard_normal(shape) * keep).astype(np.float16)
    elif spec.scheme == "table":
        values = (rng.integers(0, 2**spec.bits, shape) * keep).astype(np.int8)
        tables = table_count(rows, spec.table_rows), 2**spec.bits
        extra = {"table": (0.05 * rng.standard_normal(tables)).astype(np.float16)}
    else:
        limit = 2 ** (spec.bits - 1)
        values = (rng.integers(-limit, limit, shape) * keep).astype(np.int8)
        if spec.scheme == "asymmetric":
            # Near 0: whole groups far from it would make sums that float32 cannot tell apart.
            extra = {"zeros": rng.integers(-2, 2, (rows, groups)).astype(np.int8)}
    return Codes(
        values=values, scales=scales, keep_mask=keep, bits=spec.bits, group_size=spec.group_size,
        table_rows=spec.table_rows, **extra,
    )  # fmt: skip


def compress_at_random(captured, recipe):
    """Return a compressed model with random codes, and nothing else changed."""
    made = plan(captured, recipe)
    packed, kept = {}, {}
    weights = captured.weights()
    for seed, entry in enumerate(made.tensors):
        name = entry.tensor.name
        if entry.spec is None:
            kept[name] = weights[name]
        else:
            codes = random_codes(entry.tensor.shape, entry.spec, seed)
            layout = FORMATS.get(entry.spec.name)
            packed[name] = layout.pack(codes, pattern=entry.spec.pattern)
    return CompressedModel(captured=captured, packed=packed, kept=kept, plan=made)


@pytest.fixture
def everything():
    torch.manual_seed(0)
    module = Everything().eval()
    module.norm.running_mean.uniform_()
    return edgesparse.load(module, example_inputs={"tokens": torch.arange(5)[None]})


RECIPES = {
    "dense4": Recipe((Rule(bits=4, group_size=32),)),
    "dense3": Recipe((Rule(bits=3, group_size=32),)),
    "bitmask4": Recipe((Rule(bits=4, group_size=32, pattern=Pattern(sparsity=0.6)),)),
    "asymmetric dense4": Recipe((Rule(bits=4, group_size=32, scheme="asymmetric"),)),
    "asymmetric bitmask3": Recipe(
        (Rule(bits=3, scheme="asymmetric", pattern=Pattern(sparsity=0.6)),)
    ),
    "table dense3": Recipe((Rule(bits=3, scheme="table", table_rows=16),)),
    "table bitmask4": Recipe((Rule(bits=4, scheme="table", pattern=Pattern(sparsity=0.6)),)),
    "bitmask16": Recipe((Rule(bits=16, pattern=Pattern(sparsity=0.6)),)),
}


@pytest.fixture(params=sorted(RECIPES))
def compressed(everything, request):
    return compress_at_random(everything, RECIPES[request.param])


@pytest.fixture
def compress_random():
    return compress_at_random
