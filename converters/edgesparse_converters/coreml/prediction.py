"""The size of a package before anything is compressed, from the plan alone."""

from __future__ import annotations

import math
from collections.abc import Set

from edgesparse.model import TensorInfo
from edgesparse.packed import ASYMMETRIC, TABLE, FormatSpec
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse_converters.coreml.blocks import block_shape
from edgesparse_converters.coreml.forms import DEFAULT_CHOICE, Choice, storage

# The program around the weights, measured by bench/predictions.py: manifest and description, the
# call of a layer, and what comes with a norm that has no bias: rotary positions, gates.
FIXED_NBYTES = 12_000
NBYTES_PER_LAYER = 1_350
NBYTES_PER_MASK = 400
NBYTES_PER_CONVOLUTION = 1_100
NBYTES_PER_EXPERT = 1_100  # a matrix of an expert
NBYTES_PER_BARE_NORM = 3_100
BLOB_NBYTES = 64 + 32  # record, and half of the alignment


def predict_nbytes(plan: Plan, *, choice: Choice = DEFAULT_CHOICE) -> int:
    """Return the expected bytes of the package.

    The constants are exact for the sparsity planned; the program around them is an estimate.
    """
    names = {planned.tensor.name for planned in plan.tensors}
    tensors = sum(weight_nbytes(planned, choice, names) for planned in plan.tensors)
    return FIXED_NBYTES + sum(_graph_nbytes(p, names) for p in plan.tensors) + tensors


def _graph_nbytes(planned: TensorPlan, names: Set[str]) -> int:
    tensor = planned.tensor
    if tensor.kind == "norm":
        return 0 if _own_bias(tensor) in names else NBYTES_PER_BARE_NORM
    if len(tensor.shape) < 2:
        return 0
    kinds = {"expert": NBYTES_PER_EXPERT, "conv": NBYTES_PER_CONVOLUTION}
    masked = NBYTES_PER_MASK if _is_masked(planned.spec) else 0
    return kinds.get(tensor.kind, NBYTES_PER_LAYER) + masked


def _is_masked(spec: FormatSpec | None) -> bool:
    return spec is not None and not spec.name.startswith("dense") and not spec.pattern.is_dense


def _own_bias(tensor: TensorInfo) -> str:
    """Return what the bias beside a weight would be called; a bias is beside itself."""
    return f"{tensor.name.rpartition('.')[0]}.bias".lstrip(".")


def weight_nbytes(planned: TensorPlan, choice: Choice, names: Set[str] = frozenset()) -> int:
    """Return the expected bytes of one tensor in the weight file.

    Args:
        planned: The tensor.
        choice: How codes are stored.
        names: Of all tensors of the model.
    """
    tensor, spec = planned.tensor, planned.spec
    if tensor.name.endswith((".running_mean", ".running_var")):
        return 0  # folded into the convolution before
    bias = 0 if _own_bias(tensor) in names else _added_bias_nbytes(tensor)
    if spec is None:
        return 2 * tensor.numel + BLOB_NBYTES + bias
    masked = _is_masked(spec)
    kept = round(tensor.numel * (1 - spec.pattern.sparsity))
    mask = -(-tensor.numel // 8) if masked else 0
    if spec.bits == 16:
        return 2 * kept + mask + 2 * BLOB_NBYTES + bias
    codes = -(-kept * spec.bits // 8)
    if spec.scheme == TABLE:
        return codes + mask + _entries_nbytes(tensor, spec) + (2 + masked) * BLOB_NBYTES + bias
    block = block_shape(tensor.shape, spec.group_size)
    blocks = math.prod(size // width for size, width in zip(tensor.shape, block, strict=True))
    bits, indexed = storage(spec.bits, kept=kept, blocks=blocks, choice=choice)
    tables = (1 << bits) * (1 if choice.late_scale else blocks) if indexed else 0
    shifted = spec.scheme == ASYMMETRIC
    zeros = -(-blocks * (8 if indexed else bits) // 8) if shifted else 0
    blobs = 2 + masked + indexed + shifted
    codes = -(-kept * bits // 8)
    return codes + mask + tables + 2 * blocks + zeros + blobs * BLOB_NBYTES + bias


def _entries_nbytes(tensor: TensorInfo, spec: FormatSpec) -> int:
    """Return the bytes of the solver's tables, one for each block of rows."""
    rows = tensor.shape[0]
    blocks = rows // math.gcd(rows, spec.table_rows) if spec.table_rows else 1
    return 2 * blocks << spec.bits


def _added_bias_nbytes(tensor: TensorInfo) -> int:
    """Return the bytes of the zero bias coremltools gives every linear without one."""
    return (
        2 * tensor.shape[0] + BLOB_NBYTES
        if tensor.kind in ("linear", "expert") and tensor.shape
        else 0
    )
