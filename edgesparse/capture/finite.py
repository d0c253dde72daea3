"""Refuse weights that hold NaN or infinity before hours are spent on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesparse.errors import SourceError

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 22


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Check every element of one tensor, a chunk at a time.

    Raises:
        SourceError: One is NaN or infinite; the message names the tensor and the place.
    """
    import torch

    if not tensor.is_floating_point():
        return
    flat = tensor.detach().reshape(-1)
    for begin in range(0, flat.numel(), _CHUNK):
        chunk = flat[begin : begin + _CHUNK]
        finite = torch.isfinite(chunk)
        if not bool(finite.all()):
            where = int((~finite).nonzero()[0])
            raise SourceError(
                f"{name}: element {begin + where} of {tensor.numel()} is {float(chunk[where])}; "
                "the weights are damaged or overflowed when they were saved: get them again"
            )
