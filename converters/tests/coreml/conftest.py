"""Small models, packed by magnitude and rounding: what the converter must carry unchanged."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.budget import Budget
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.packed import FORMATS, Codes
from edgesparse.pattern import DENSE, Pattern
from edgesparse.planner import Plan, TensorPlan
from edgesparse.recipe import Rule

KINDS = (TensorKind.LINEAR, TensorKind.CONV, TensorKind.EMBEDDING)


def make_codes(weight: np.ndarray, mask: np.ndarray, bits: int, group_size: int) -> Codes:
    """Round ``weight`` to codes; scales have at most 8 significant bits."""
    matrix = (weight * mask).reshape(len(weight), -1).astype(np.float32)
    if bits == 16:
        values = matrix.astype(np.float16).reshape(weight.shape)
        scales = np.zeros((len(weight), 0), np.float16)
        return Codes(values=values, scales=scales, keep_mask=mask, bits=16, group_size=0)
    groups = -(-matrix.shape[1] // group_size)
    padded = np.zeros((len(matrix), groups * group_size), np.float32)
    padded[:, : matrix.shape[1]] = matrix
    largest = np.abs(padded).reshape(len(matrix), groups, group_size).max(-1)
    scales = torch.from_numpy(np.where(largest > 0, largest / (2 ** (bits - 1)), 1.0))
    scales = scales.bfloat16().half().numpy()
    by_column = np.repeat(scales.astype(np.float32), group_size, 1)[:, : matrix.shape[1]]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = np.clip(np.rint(matrix / by_column), low, high).astype(np.int8)
    codes = (codes.reshape(weight.shape) * mask).astype(np.int8)
    return Codes(values=codes, scales=scales, keep_mask=mask, bits=bits, group_size=group_size)


def compress_simply(
    captured: CapturedModel,
    *,
    bits: int = 4,
    group_size: int = 32,
    sparsity: float = 0.5,
    masks: Callable[[str, np.ndarray], np.ndarray] | None = None,
) -> CompressedModel:
    """Pack every linear, convolution and embedding of a captured model."""
    values = captured.loader().state_dict(keep_vars=True)
    packed, kept, plans = {}, {}, []
    layout = "bitmask" if sparsity or bits == 16 or masks else "dense"
    pattern = Pattern(sparsity=sparsity) if sparsity else DENSE
    for tensor in captured.tensors:
        weight = values[tensor.name].detach()
        if not (tensor.compressible and tensor.kind in KINDS):
            kept[tensor.name] = weight
            plans.append(TensorPlan(tensor=tensor, rule=None, spec=None, nbytes=tensor.nbytes))
            continue
        array = weight.float().numpy()
        mask = np.abs(array) >= np.quantile(np.abs(array), sparsity)
        mask = masks(tensor.name, array) if masks else mask
        columns = array[0].size
        codes = make_codes(array, mask, bits, group_size or columns)
        packed[tensor.name] = FORMATS.get(f"{layout}{bits}").pack(codes, pattern=pattern)
        spec = packed[tensor.name].spec
        plans.append(TensorPlan(tensor=tensor, rule=Rule(bits=bits), spec=spec, nbytes=0))
    plan = Plan(tensors=tuple(plans), nbytes=0, budget=Budget())
    return CompressedModel(captured=captured, packed=packed, kept=kept, plan=plan)


class Layers(nn.Module):
    """One layer of every kind that holds a weight, on an image and on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.conv1d = nn.Conv1d(6, 5, 5, padding=2)
        self.tokens = nn.Embedding(40, 24)
        self.linear = nn.Linear(24, 24)
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, image, ids):
        x = torch.relu(self.depthwise(self.conv(image)))
        x = self.conv1d(self.up(x).flatten(2))
        y = self.head(torch.tanh(self.linear(self.tokens(ids))))
        return {"image": x, "logits": y}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: on a busy host threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def layers() -> CapturedModel:
    torch.manual_seed(0)
    inputs = {"image": torch.randn(1, 3, 8, 8), "ids": torch.arange(6)[None]}
    return es.load(Layers().eval(), example_inputs=inputs)


@pytest.fixture(scope="session")
def compressed() -> Callable[..., CompressedModel]:
    return compress_simply
