from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgesparse as es
from edgesparse.budget import Budget
from edgesparse.errors import MissingTool
from edgesparse.exporting import Artifact, export
from edgesparse.formats.choice import candidates
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import FORMATS, Codes, PackedTensor, matrix_shape
from edgesparse.pattern import DENSE, Pattern
from edgesparse.planner.types import Plan
from edgesparse.prune.masks import keep_highest

Pack = Callable[..., PackedTensor]
Compress = Callable[..., CompressedModel]

CLASSICS = Path(__file__).parents[3] / "examples" / "models" / "classics-4m"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Skip, with the reason, what needs a compiler where there is none."""
    return (yield from _skipped_without_compiler())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip, with the reason, what needs a compiler where there is none."""
    return (yield from _skipped_without_compiler())


def _skipped_without_compiler() -> Generator[None, object, object]:
    try:
        return (yield)
    except MissingTool as error:
        pytest.skip(str(error))


def make_codes(weight: Tensor, *, bits: int, group_size: int, pattern: Pattern) -> Codes:
    """Magnitude pruning and rounding on scales that bfloat16 holds: a solver in ten lines."""
    rows, columns = matrix_shape(tuple(weight.shape))
    group = group_size or columns
    matrix = weight.detach().float().reshape(rows, columns)
    keep = keep_highest(matrix.abs(), pattern)
    if bits == 16:
        values = torch.where(keep, matrix, 0).half().numpy().reshape(weight.shape)
        mask = keep.numpy().reshape(weight.shape)
        return Codes(
            values=values, scales=np.zeros((rows, 0), np.float16), keep_mask=mask, bits=16,
            group_size=0,
        )  # fmt: skip
    limit = 1 << (bits - 1)
    padded = nn.functional.pad(torch.where(keep, matrix, 0), (0, -columns % group))
    grouped = padded.reshape(rows, -1, group)
    scales = (grouped.abs().amax(-1) / (limit - 0.5)).bfloat16().half()
    scales = torch.where(scales > 1e-4, scales, 1).bfloat16().half()
    codes = (grouped / scales.float()[..., None]).round().clamp(-limit, limit - 1)
    values = codes.reshape(rows, -1)[:, :columns].to(torch.int8)
    return Codes(
        values=values.numpy().reshape(weight.shape), scales=scales.numpy(),
        keep_mask=keep.numpy().reshape(weight.shape), bits=bits, group_size=group,
    )  # fmt: skip


def pack(
    weight: Tensor,
    *,
    bits: int = 4,
    group_size: int = 32,
    sparsity: float = 0.0,
    pattern: str = "unstructured",
) -> PackedTensor:
    masks = Pattern.parse(pattern, sparsity=sparsity) if sparsity else DENSE
    codes = make_codes(weight, bits=bits, group_size=group_size, pattern=masks)
    name = candidates(masks, bits=bits)[0] if masks.n_of_m or masks.block != (1, 1) else (
        f"bitmask{bits}" if sparsity or bits == 16 else f"dense{bits}"
    )  # fmt: skip
    return FORMATS.get(name).pack(codes, pattern=masks)


def compress_by_hand(
    captured: CapturedModel, options: Mapping[str, Mapping[str, Any]]
) -> CompressedModel:
    """Pack the named tensors, ``name -> keywords of pack``; keep the others."""
    weights = captured.weights()
    packed = {name: pack(weights[name], **keywords) for name, keywords in options.items()}
    kept = {t.name: weights[t.name] for t in captured.tensors if t.name not in packed}
    plan = Plan(tensors=(), nbytes=0, budget=Budget())
    return CompressedModel(captured=captured, packed=packed, kept=kept, plan=plan)


@pytest.fixture(scope="session")
def compress() -> Compress:
    """``compress(module, inputs, name=dict(bits=…))`` without calibration."""

    def make(
        module: nn.Module, inputs: Mapping[str, Tensor], **options: Mapping[str, Any]
    ) -> CompressedModel:
        captured = es.load(module.eval(), example_inputs=dict(inputs))
        return compress_by_hand(captured, {k.replace("__", "."): v for k, v in options.items()})

    return make


def compress_like_the_demo(captured: CapturedModel) -> CompressedModel:
    """50 % and 4 bits in groups of 128 for linears, 4 bits for the embedding."""
    options: dict[str, dict[str, float]] = {}
    for tensor in captured.tensors:
        if tensor.kind == "embedding":
            options[tensor.name] = {"bits": 4, "group_size": 128}
        elif tensor.kind == "linear":
            options[tensor.name] = {"bits": 4, "group_size": 128, "sparsity": 0.5}
    return compress_by_hand(captured, options)


@pytest.fixture(scope="session")
def compress_captured() -> Callable[[CapturedModel], CompressedModel]:
    return compress_like_the_demo


@pytest.fixture(scope="session")
def classics() -> CompressedModel:
    return compress_like_the_demo(es.load(CLASSICS))


@pytest.fixture(scope="session")
def classics_packed(
    classics: CompressedModel, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    path = tmp_path_factory.mktemp("classics") / "packed.pte"
    return export(classics, "executorch", path, budget=Budget(file="2.2MB"))


@pytest.fixture(scope="session")
def classics_xnnpack(
    classics: CompressedModel, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    path = tmp_path_factory.mktemp("classics") / "xnnpack.pte"
    return export(classics, "executorch", path, lowering="xnnpack")
