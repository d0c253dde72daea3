from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgesparse.budget import Budget
from edgesparse.capture import load
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import FORMATS, Codes, PackedTensor, matrix_shape, table_count
from edgesparse.pattern import DENSE, Pattern
from edgesparse.planner import Plan, TensorPlan
from edgesparse.recipe import Rule


def pack(shape: tuple[int, ...], name: str, *, group_size: int = 16, seed: int = 0) -> PackedTensor:
    """Return random codes in the format ``name``, which may be followed by a scheme."""
    generator = np.random.default_rng(seed)
    name, _, scheme = name.partition(" ")
    bits = FORMATS.get(name).bits
    rows, columns = matrix_shape(shape)
    keep = generator.random(shape) < (1.0 if name.startswith("dense") else 0.5)
    limit = 1 << (bits - 1)
    values = (generator.integers(-limit, limit, shape) * keep).astype(np.int8)
    scales = np.ones((rows, -(-columns // group_size)), np.float16)
    codes = Codes(values=values, scales=scales, keep_mask=keep, bits=bits, group_size=group_size)
    if scheme == "asymmetric":
        zeros = generator.integers(-limit, limit, scales.shape).astype(np.int8)
        codes = replace(codes, zeros=zeros)
    elif scheme == "table":
        table = generator.standard_normal((table_count(rows, 8), 2 * limit)).astype(np.float16)
        codes = replace(
            codes, values=((values + limit) * keep).astype(np.int8), scales=scales[:, :0],
            group_size=0, table=table, table_rows=8,
        )  # fmt: skip
    pattern = DENSE if name.startswith("dense") else Pattern(sparsity=0.5)
    return FORMATS.get(name).pack(codes, pattern=pattern)


def compressed_from(captured: CapturedModel, formats: tuple[str, ...]) -> CompressedModel:
    """Pack every compressible tensor with random codes, the formats by turns."""
    packed: dict[str, PackedTensor] = {}
    plans = []
    for tensor in captured.tensors:
        if not tensor.compressible:
            plans.append(TensorPlan(tensor=tensor, rule=None, spec=None, nbytes=tensor.nbytes))
            continue
        made = pack(tensor.shape, formats[len(packed) % len(formats)], seed=len(packed))
        packed[tensor.name] = made
        spec = made.spec
        rule = Rule(
            bits=spec.bits, pattern=spec.pattern, scheme=spec.scheme, table_rows=spec.table_rows,
            group_size=128 if spec.scheme == "table" else 16,
        )  # fmt: skip
        plans.append(TensorPlan(tensor=tensor, rule=rule, spec=made.spec, nbytes=made.nbytes))
    weights = captured.weights()
    return CompressedModel(
        captured=captured,
        packed=packed,
        kept={t.name: weights[t.name] for t in captured.tensors if t.name not in packed},
        plan=Plan(tensors=tuple(plans), nbytes=0, budget=Budget(file="2MB"), notes=("by hand",)),
        errors=dict.fromkeys(packed, 0.25),
        metadata={"calibration": "none", "windows": 3},
    )


class Small(torch.nn.Module):
    """A little of everything: tied weights, a norm with buffers, an odd shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(21, 20)
        self.norm = torch.nn.BatchNorm1d(20)
        self.up = torch.nn.Linear(20, 33)
        self.down = torch.nn.Linear(33, 20, bias=False)
        self.head = torch.nn.Linear(20, 21, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.embed(tokens))
        logits: torch.Tensor = self.head(self.down(torch.relu(self.up(hidden))))
        return logits


@pytest.fixture
def small() -> CapturedModel:
    torch.manual_seed(0)
    return load(Small(), example_inputs={"tokens": torch.arange(6)})


FORMS = {
    "symmetric": ("dense4", "bitmask4", "bitmask3"),
    "others": ("bitmask4 asymmetric", "dense3 table", "bitmask2 table"),
}


@pytest.fixture(params=FORMS)
def compressed(small: CapturedModel, request: pytest.FixtureRequest) -> CompressedModel:
    return compressed_from(small, FORMS[request.param])


@pytest.fixture
def compress_by_hand() -> Callable[..., CompressedModel]:
    return compressed_from
