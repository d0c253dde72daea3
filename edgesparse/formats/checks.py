"""What every reader checks before it trusts a buffer: spec, shape, names, lengths, scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from edgesparse_kernels.layout import aligned
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.packed import Codes, FormatSpec, PackedTensor, matrix_shape


def check_spec(spec: FormatSpec, *, name: str, version: int, bits: int) -> None:
    """Check that ``spec`` is of this format.

    Raises:
        FormatError: Another name, version or number of bits.
    """
    if spec.name != name or spec.bits != bits:
        raise FormatError(f"{name}: a tensor of {spec.name} with {spec.bits} bits is not one of it")
    if spec.version != version:
        raise FormatError(
            f"{name}: version {spec.version} of the layout, this program reads {version}; "
            "read it with the release that wrote it"
        )


def check_codes(codes: Codes, *, name: str, bits: int) -> None:
    """Check that ``codes`` can be stored with ``bits`` bits.

    Raises:
        FormatError: They have another number of bits, or float16 values that are not finite.
    """
    if codes.bits != bits:
        raise FormatError(f"{name}: codes have {codes.bits} bits, this format stores {bits}")
    if bits == 16 and not np.all(np.isfinite(codes.values)):
        raise FormatError(f"{name}: a float16 value is not finite; weights must fit in ±65504")


def check_shape(packed: PackedTensor) -> tuple[int, int]:
    """Return (rows, columns) of a packed tensor.

    Raises:
        CorruptPack: A shape without dimensions, or with a negative one.
    """
    if not packed.shape or min(packed.shape) < 0:
        raise CorruptPack(f"{packed.spec.name}: {packed.shape} is not the shape of a weight")
    return matrix_shape(packed.shape)


def check_buffer(
    packed: PackedTensor, name: str, dtype: type[np.generic], nbytes: int
) -> NDArray[np.generic]:
    """Return the buffer ``name`` of exactly ``nbytes`` bytes.

    Raises:
        CorruptPack: It is missing, or of another type or length.
    """
    buffer = packed.require(name, dtype)
    if buffer.nbytes != nbytes or not buffer.flags.c_contiguous:
        raise CorruptPack(
            f"{packed.spec.name}: buffer {name!r} of a weight of shape {packed.shape} has "
            f"{buffer.nbytes} bytes, expected {nbytes}; the file is damaged, compress again"
        )
    return buffer


def check_names(packed: PackedTensor, expected: Mapping[str, int]) -> None:
    """Check that no buffer is there that the format does not know.

    Raises:
        CorruptPack: One is.
    """
    unknown = sorted(set(packed.buffers) - set(expected))
    if unknown:
        raise CorruptPack(
            f"{packed.spec.name}: unknown buffer {unknown[0]!r}; expected {', '.join(expected)}"
        )


def check_scales(packed: PackedTensor, rows: int, groups: int, tiles: int) -> None:
    """Check the stored scales: finite and positive in rows of the weight, 0 in padding.

    Raises:
        CorruptPack: Otherwise.
    """
    used = tiles * groups * 16
    buffer = check_buffer(packed, "scales", np.float16, aligned(2 * used))
    words = buffer.view(np.uint16)
    stored = words[:used].reshape(tiles, groups, 16)
    real = np.arange(tiles * 16).reshape(tiles, 1, 16) < rows
    # As words: 0 < word < 0x7c00 is exactly "positive and finite" in float16.
    good = np.where(real, (stored > 0) & (stored < 0x7C00), stored == 0)
    if not good.all() or words[used:].any():
        raise CorruptPack(
            f"{packed.spec.name}: a scale is not finite and positive, or padding is not zero; "
            "the file is damaged, compress again"
        )
