"""The bytes that are sent for a model: stores and servers compress files on the way (deflate).

Masks of random places cannot be made smaller than the entropy of their density. Codes can: those
near zero are frequent. Their entropy is that of a Gaussian weight in the same format. Scales,
offsets and floating-point weights shrink by what was measured on real models.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgesparse.packed import FORMATS, FormatSpec
from edgesparse.pattern import Pattern
from edgesparse.planner.error_model import gaussian_codes
from edgesparse.planner.types import TensorPlan

# Measured with zlib at level 6 on a bundled model. Deflate codes bytes, not single codes: it takes
# up to 7 % more than the entropy of what is stored.
_FLOATS, _SCALES, _OFFSETS = 0.92, 0.61, 0.68
_CHUNK = 1 << 20
_SPLIT_BITS, _LOW_BITS = 3, 2  # see formats.planes


def download_nbytes(entry: TensorPlan) -> int:
    """Return the expected bytes of one tensor as it is sent."""
    spec = entry.spec
    if spec is None:
        return round(_FLOATS * entry.nbytes)
    buffers = FORMATS.get(spec.name).predict_nbytes(spec, entry.tensor.shape)
    return round(sum(_ratio(name, spec) * nbytes for name, nbytes in buffers.items()))


def deflated_nbytes(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder, as they are sent."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    total = 0
    for file in files:
        squeeze = zlib.compressobj(6)
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                total += len(squeeze.compress(chunk))
        total += len(squeeze.flush())
    return total


def _ratio(buffer: str, spec: FormatSpec) -> float:
    """Return the deflated part of a buffer."""
    if buffer.startswith("codes"):
        if spec.bits == 16:
            return _FLOATS
        shift = _plane_shift(buffer, spec.bits)
        return _code_ratio(spec.bits, shift, spec.group_size, spec.pattern)
    if buffer.startswith("offsets"):
        return _OFFSETS
    if buffer in ("scales", "zeros", "table"):
        return _SCALES
    return _entropy_of_bits(1 - spec.pattern.sparsity) if buffer == "mask" else 1.0


def _entropy_of_bits(share: float) -> float:
    """Return the entropy in bits of a bit that is set with this probability."""
    if share in (0.0, 1.0):
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def _plane_shift(buffer: str, bits: int) -> int:
    """Return at which bit of a code a buffer begins: three bits are stored as two and one."""
    return _LOW_BITS if bits == _SPLIT_BITS and buffer == "codes_high" else 0


@lru_cache(maxsize=1024)
def _code_ratio(bits: int, shift: int, group_size: int, pattern: Pattern) -> float:
    """Return the entropy of the stored part of a Gaussian weight's code, over its bits."""
    width = bits
    if bits == _SPLIT_BITS:
        width = bits - _LOW_BITS if shift else _LOW_BITS
    codes = (gaussian_codes(bits, group_size, pattern) >> shift) & ((1 << width) - 1)
    _, counts = np.unique(codes, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum()) / width
