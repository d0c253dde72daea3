"""The size of a package before anything is compressed, from the plan alone."""

from __future__ import annotations

import math

from edgesparse.model import TensorInfo
from edgesparse.packed import ASYMMETRIC, TABLE, FormatSpec
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse_converters.coreml.blocks import block_shape
from edgesparse_converters.coreml.forms import DEFAULT_CHOICE, Choice, storage

# Measured on packages of the bundled model and of small networks: the manifest and description,
# and the part of the program that is there for each tensor.
FIXED_NBYTES = 12_000
NBYTES_PER_TENSOR = 2_800
BLOB_NBYTES = 64 + 32  # record, and half of the alignment


def predict_nbytes(plan: Plan, *, choice: Choice = DEFAULT_CHOICE) -> int:
    """Return the expected bytes of the package.

    The constants are exact for the sparsity planned; the program around them is an estimate.
    """
    tensors = sum(weight_nbytes(tensor, choice) for tensor in plan.tensors)
    matrices = sum(len(tensor.tensor.shape) > 1 for tensor in plan.tensors)
    return FIXED_NBYTES + NBYTES_PER_TENSOR * matrices + tensors


def weight_nbytes(planned: TensorPlan, choice: Choice) -> int:
    """Return the expected bytes of one tensor in the weight file."""
    tensor, spec = planned.tensor, planned.spec
    bias = _added_bias_nbytes(tensor)
    if spec is None:
        return 2 * tensor.numel + BLOB_NBYTES + bias
    masked = not spec.name.startswith("dense") and not spec.pattern.is_dense
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
