"""Outputs judged row by row, because of what a rounding tie does.

The reference is the packed model in torch with the activation arithmetic of each form. What is
left to differ is the order of float additions, 1e-6; but an activation that lies on the edge
between two codes may then be rounded the other way, and everything after it differs by as much as
the rounding itself, 1 % with 8 bits. So rows (along the last dimension) are judged one by one:
those that no such tie has reached must agree closely, and there must be some; over all rows the
error must not exceed the distance that rounded activations make anyway, which is measured beside
it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesparse.exporting import OutputCheck

TOLERANCE = 1e-3
# Two roundings that went different ways are twice as far apart as one is from the exact value.
NOISE_FACTOR = 2.0


def compare_rows(
    name: str,
    found: NDArray[np.float32],
    reference: NDArray[np.float32],
    exact: NDArray[np.float32],
) -> tuple[list[OutputCheck], str]:
    """Return the checks of one output, and what to say about it.

    Args:
        name: Name of the output.
        found: What the runtime computed, ``[calls, ..., K]``.
        reference: The packed model with the same activation arithmetic.
        exact: The packed model with float32 activations.
    """
    if found.shape != reference.shape or not np.all(np.isfinite(found)):
        bad = OutputCheck(
            name=name, max_abs_error=np.inf, relative_error=np.inf, tolerance=TOLERANCE
        )
        return [bad], f"{name}: shape {found.shape}, expected {reference.shape} and finite values"
    width = reference.shape[-1] if reference.ndim > 1 else 1
    rows = [array.reshape(-1, width).astype(np.float64) for array in (found, reference, exact)]
    errors = _relative(rows[0], rows[1], axis=1)
    same = errors <= TOLERANCE
    if not same.any():
        same = errors == errors.min()
    noise = float(_relative(rows[1], rows[2]))
    checks = [
        _check(name, rows[0][same], rows[1][same], TOLERANCE),
        _check(f"{name}, all rows", rows[0], rows[1], max(TOLERANCE, NOISE_FACTOR * noise)),
    ]
    return checks, (
        f"{name}: {int(same.sum())} of {len(same)} rows untouched by a rounding tie; the packed "
        f"model with these activations is {noise:.1e} from itself with float32 activations, the "
        f"file {float(_relative(rows[0], rows[2])):.1e}"
    )


def _check(
    name: str, found: NDArray[np.float64], reference: NDArray[np.float64], tolerance: float
) -> OutputCheck:
    return OutputCheck(
        name=name,
        max_abs_error=float(np.abs(found - reference).max(initial=0.0)),
        relative_error=float(_relative(found, reference)),
        tolerance=tolerance,
    )


def _relative(
    found: NDArray[np.float64], reference: NDArray[np.float64], axis: int | None = None
) -> NDArray[np.float64]:
    norm = np.linalg.norm(reference, axis=axis)
    return np.asarray(np.linalg.norm(found - reference, axis=axis) / np.where(norm > 0, norm, 1.0))
