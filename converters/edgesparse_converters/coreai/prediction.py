"""The size of an asset before anything is compressed, from the plan alone."""

from __future__ import annotations

import math

from edgesparse.packed import ASYMMETRIC, TABLE
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse_converters.coreml.blocks import block_shape

# Measured on assets of the bundled model and of small networks: metadata and the program's frame,
# the call of a layer, and what comes with a norm: attention, rotary positions, gates.
FIXED_NBYTES = 2_800
NBYTES_PER_TENSOR = 700
NBYTES_PER_NORM = 6_500
SCALE_NBYTES = 4


def predict_nbytes(plan: Plan) -> int:
    """Return the expected bytes of the asset.

    The constants are exact for the sparsity planned; the program around them is an estimate.
    """
    tensors = sum(weight_nbytes(tensor) for tensor in plan.tensors)
    matrices = sum(len(tensor.tensor.shape) > 1 for tensor in plan.tensors)
    norms = sum(tensor.tensor.kind == "norm" for tensor in plan.tensors)
    return FIXED_NBYTES + NBYTES_PER_TENSOR * matrices + NBYTES_PER_NORM * norms + tensors


def weight_nbytes(planned: TensorPlan) -> int:
    """Return the bytes of one tensor's constants."""
    tensor, spec = planned.tensor, planned.spec
    if spec is None:
        return 4 * tensor.numel
    masked = not spec.name.startswith("dense") and not spec.pattern.is_dense
    kept = round(tensor.numel * (1 - spec.pattern.sparsity))
    stored = -(-kept * spec.bits // 8) + (-(-tensor.numel // 8) if masked else 0)
    if spec.bits == 16:
        return stored
    if spec.scheme == TABLE:
        rows = tensor.shape[0]
        blocks = rows // math.gcd(rows, spec.table_rows) if spec.table_rows else 1
        return stored + (SCALE_NBYTES * blocks << spec.bits)
    block = block_shape(tensor.shape, spec.group_size)
    blocks = math.prod(size // width for size, width in zip(tensor.shape, block, strict=True))
    narrow = spec.bits == 4 and not masked
    zeros = -(-blocks * 4 // 8) if narrow else blocks
    return stored + SCALE_NBYTES * blocks + (zeros if spec.scheme == ASYMMETRIC else 0)
