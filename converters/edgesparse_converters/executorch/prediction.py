"""The size of a ``.pte`` before anything is compressed, from the plan alone."""

from __future__ import annotations

from collections.abc import Sequence

from edgesparse.model import TensorInfo
from edgesparse.planner.peak import is_window
from edgesparse.planner.types import Plan, TensorPlan

# The graph around the weights, measured by bench/predictions.py: methods and values, the call of a
# layer, and what comes with a norm: rotary positions, gates and caches where it has no bias, masks
# and the delegates between where it has one (3,900 around packed layers, 8,200 around XNNPACK's).
_FIXED_NBYTES = 8_000
_NBYTES_PER_LAYER = 1_100
_NBYTES_PER_CONVOLUTION = 300  # within a delegate
_NBYTES_PER_EXPERT = 800  # a matrix of an expert
_NBYTES_PER_BARE_NORM = 7_000
_NBYTES_PER_NORM = 5_900
_FLOAT32_NBYTES = 4


def predict_nbytes(plan: Plan) -> int:
    """Return the expected bytes of the program with ``lowering="auto"``.

    Weights dominate and are exact but for padding; the graph around them is an estimate.
    """
    weights = sum(_weight_nbytes(tensor) for tensor in plan.tensors)
    return _FIXED_NBYTES + _graph_nbytes([planned.tensor for planned in plan.tensors]) + weights


def _graph_nbytes(tensors: Sequence[TensorInfo]) -> int:
    names = {tensor.name for tensor in tensors}
    total = 0
    for tensor in tensors:
        if tensor.kind == "norm":
            stem, _, leaf = tensor.name.rpartition(".")
            if leaf == "weight" and f"{stem}.running_mean" not in names:  # that one is folded
                bare = f"{stem}.bias" not in names
                total += _NBYTES_PER_BARE_NORM if bare else _NBYTES_PER_NORM
        elif tensor.compressible and is_window(tensor):
            total += _NBYTES_PER_CONVOLUTION
        elif tensor.compressible:
            total += _NBYTES_PER_EXPERT if tensor.kind == "expert" else _NBYTES_PER_LAYER
    return total


def _weight_nbytes(planned: TensorPlan) -> int:
    tensor = planned.tensor
    if tensor.name.endswith((".running_mean", ".running_var")):
        return 0  # folded into the convolution before
    if planned.spec is None:
        # A tied float32 weight is stored twice: for the lookup, and inside the delegate.
        return _FLOAT32_NBYTES * tensor.numel * (1 + _is_tied_embedding(tensor))
    if is_window(tensor):
        return _FLOAT32_NBYTES * tensor.numel  # only a 1x1 convolution is computed packed
    return planned.nbytes


def _is_tied_embedding(tensor: TensorInfo) -> bool:
    return tensor.kind == "embedding" and bool(tensor.aliases)
