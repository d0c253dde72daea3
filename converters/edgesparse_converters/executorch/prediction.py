"""The size of a ``.pte`` before anything is compressed, from the plan alone."""

from __future__ import annotations

from edgesparse.model import TensorInfo
from edgesparse.planner.types import Plan, TensorPlan

# Measured on programs of the bundled model and of small networks: methods, values and
# instructions, and the alignment of segments.
_FIXED_NBYTES = 16_000
_NBYTES_PER_TENSOR = 3_200
_FLOAT32_NBYTES = 4


def predict_nbytes(plan: Plan) -> int:
    """Return the expected bytes of the program with ``lowering="auto"``.

    Weights dominate and are exact but for padding; the graph around them is an estimate.
    """
    weights = sum(_weight_nbytes(tensor) for tensor in plan.tensors)
    matrices = sum(tensor.tensor.compressible for tensor in plan.tensors)
    return _FIXED_NBYTES + _NBYTES_PER_TENSOR * matrices + weights


def _weight_nbytes(planned: TensorPlan) -> int:
    tensor = planned.tensor
    if planned.spec is None:
        # A tied float32 weight is stored twice: for the lookup, and inside the delegate.
        return _FLOAT32_NBYTES * tensor.numel * (1 + _is_tied_embedding(tensor))
    if tensor.kind not in ("linear", "expert", "embedding"):
        return _FLOAT32_NBYTES * tensor.numel  # a convolution is decoded
    return planned.nbytes


def _is_tied_embedding(tensor: TensorInfo) -> bool:
    return tensor.kind == "embedding" and bool(tensor.aliases)
