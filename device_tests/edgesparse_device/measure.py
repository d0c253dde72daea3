"""How far an output is from its reference: arrays in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """One output y of a device against its reference r.

    Attributes:
        name: Name of the output.
        max_abs: Largest ``|y - r|`` of one element.
        relative: ``|y - r| / |r|`` in the 2-norm; inf where r is zero and y is not.
        cosine: ``y·r / (|y| |r|)``; 1 where both are zero.
        top1: Fraction of positions whose largest element of the last axis is the same; None where
            the last axis has one element.
    """

    name: str
    max_abs: float
    relative: float
    cosine: float
    top1: float | None


def measure(name: str, value: NDArray[Any], reference: NDArray[Any]) -> OutputError:
    """Compare an output with its reference; other shapes or values not finite are infinitely far.

    Args:
        name: Name of the output.
        value: What the device gave.
        reference: What the packed model gives.
    """
    y, r = value.astype(np.float64), reference.astype(np.float64)
    if y.shape != r.shape or not np.isfinite(y).all():
        return OutputError(name=name, max_abs=np.inf, relative=np.inf, cosine=0.0, top1=None)
    difference = float(np.linalg.norm(y - r))
    sizes = float(np.linalg.norm(y)), float(np.linalg.norm(r))
    if difference == 0.0:
        relative, cosine = 0.0, 1.0
    else:
        relative = difference / sizes[1] if sizes[1] else float("inf")
        # Clipped: rounding can put a cosine of parallel vectors one unit above 1.
        cosine = float(np.clip(np.vdot(y, r) / (sizes[0] * sizes[1]), -1, 1)) if all(sizes) else 0.0
    return OutputError(
        name=name,
        max_abs=float(np.abs(y - r).max(initial=0.0)),
        relative=relative,
        cosine=cosine,
        top1=_agreement(y, r),
    )


def tokens_of(logits: NDArray[Any]) -> tuple[int, ...]:
    """Return the most likely token at every position of logits ``[..., vocabulary]``."""
    return tuple(int(token) for token in logits.argmax(axis=-1).reshape(-1))


def token_agreement(tokens: tuple[int, ...], reference: tuple[int, ...]) -> float:
    """Return the fraction of positions with the same token; 0 when the lengths differ."""
    if len(tokens) != len(reference) or not tokens:
        return 0.0
    return float(np.mean(np.array(tokens) == np.array(reference)))


def _agreement(y: NDArray[Any], r: NDArray[Any]) -> float | None:
    if not y.ndim or y.shape[-1] < 2 or not y.size:
        return None
    return float((y.argmax(axis=-1) == r.argmax(axis=-1)).mean())
