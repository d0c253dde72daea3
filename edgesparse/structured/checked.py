"""Cut a module, and see that it computes what it should."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgesparse.errors import UsageError
from edgesparse.runtime.forward import first_tensor
from edgesparse.structured.groups import Group, Part
from edgesparse.structured.surgery import cut, restate_sizes, size_changes, zero_removed

_TOLERANCE = 1e-3


def cut_exactly(module: nn.Module, keep: Mapping[Group, Tensor], batch: Mapping[str, Any]) -> None:
    """Cut in place, and see on one batch that what is left computes what it should.

    Modules keep sizes among their own attributes, which no graph shows. The least change of them
    with which the cut module computes what the whole one does with the removed units at zero is
    the right one. Where norms take means over removed units there is nothing to compare with: then
    it has to run.

    Raises:
        UsageError: With none of them.
    """
    inputs = {name: v[:1] if isinstance(v, Tensor) and v.dim() else v for name, v in batch.items()}
    exact = all(group.part is not Part.WIDTH for group in keep)
    whole = copy.deepcopy(module)
    zero_removed(whole, keep)
    with torch.no_grad():
        expected = first_tensor(whole(**inputs))
    cut_module = copy.deepcopy(module)
    cut(cut_module, keep)
    for changes in (
        {},
        size_changes(module, keep, units=False),
        size_changes(module, keep, units=True),
    ):
        tried = copy.deepcopy(cut_module)
        restate_sizes(tried, changes)
        if _computes(tried, inputs, expected, exact=exact):
            cut(module, keep)
            restate_sizes(module, changes)
            return
    parts = ", ".join(sorted({group.part for group in keep}))
    raise UsageError(
        f"{type(module).__name__} does not run with fewer {parts}: it keeps their number where it "
        "was not found"
    )


def _computes(
    module: nn.Module, inputs: Mapping[str, Any], expected: Tensor, *, exact: bool
) -> bool:
    try:
        with torch.no_grad():
            found = first_tensor(module(**inputs))
    except (RuntimeError, ValueError, IndexError):  # shapes that do not fit
        return False
    if found.shape != expected.shape:
        return False
    error = (found - expected).norm() / expected.norm().clamp_min(1e-12)
    return not exact or float(error) < _TOLERANCE
