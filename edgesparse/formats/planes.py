"""Planes and streams: the codes of one plane as bytes that several streams share.

Within a tile, stream ``j`` of a plane of width ``w`` holds the kept codes of the quads ``q`` with
``q % streams == j``, quads ascending, lanes ascending; its i-th code sits in byte ``i`` of the
tile, bits ``[w * j, w * j + w)``. A tile is as long as its longest stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from edgesparse_kernels.layout import CELL, PLANES, SLACK, code_nbytes, streams
from numpy.typing import NDArray

from edgesparse.formats.tiles import pad_buffer

_POPCOUNT = np.array([int(byte).bit_count() for byte in range(256)], np.uint8)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One plane of a code.

    Attributes:
        width: Bits of the code it holds.
        shift: Lowest of them.
        suffix: What its buffers' names end with: "" or "_high".
    """

    width: int
    shift: int
    suffix: str

    @property
    def streams(self) -> int:
        """How many streams share its bytes."""
        return streams(self.width)

    @property
    def code_nbytes(self) -> int:
        """Bytes of one position."""
        return code_nbytes(self.width)


def planes(bits: int) -> tuple[Plane, ...]:
    """Return the planes of a code of ``bits`` bits, lowest bits first."""
    shifts = np.cumsum((0, *PLANES[bits]))
    return tuple(
        Plane(width=width, shift=int(shift), suffix="_high" if shift else "")
        for width, shift in zip(PLANES[bits], shifts[:-1], strict=True)
    )


def popcounts(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of set bits of each word, shape of ``words``."""
    by_byte = _POPCOUNT[words.reshape(-1).view(np.uint8)].reshape(*words.shape, 8)
    counts: NDArray[np.int64] = np.sum(by_byte, axis=-1, dtype=np.int64)
    return counts


def stream_lengths(kept: NDArray[np.int64], plane: Plane) -> NDArray[np.int64]:
    """Return the codes of each stream, [tiles, streams], from the kept codes [tiles, quads]."""
    tiles, quads = kept.shape
    by_stream = kept.reshape(tiles, quads // plane.streams, plane.streams)
    lengths: NDArray[np.int64] = np.sum(by_stream, axis=1, dtype=np.int64)
    return lengths


def tile_offsets(kept: NDArray[np.int64], plane: Plane) -> NDArray[np.int64]:
    """Return where each tile begins and the last one ends, in bytes, [tiles + 1]."""
    longest = stream_lengths(kept, plane).max(axis=1) * plane.code_nbytes
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(longest)])


def pack_streams(
    cells: NDArray[np.uint16], keep: NDArray[np.bool_], plane: Plane
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of one plane and its tile offsets.

    Args:
        cells: Codes as unsigned integers, [tiles, quads, 64].
        keep: Which of them are stored, same shape.
        plane: The plane.
    """
    offsets = tile_offsets(keep.sum(axis=2, dtype=np.int64), plane)
    positions = np.zeros(int(offsets[-1]) // plane.code_nbytes, np.uint16)
    low_bits = np.uint16((1 << plane.width) - 1)
    for j in range(plane.streams):
        chosen = keep[:, j :: plane.streams]
        codes = (cells[:, j :: plane.streams][chosen] >> plane.shift) & low_bits
        where = _positions(chosen, offsets, plane)
        positions[where] |= codes << (plane.width * j)
    stored = positions.view(np.uint8) if plane.width == 16 else positions.astype(np.uint8)
    return pad_buffer(stored, slack_nbytes=SLACK), offsets


def unpack_streams(
    buffer: NDArray[np.uint8], offsets: NDArray[np.int64], keep: NDArray[np.bool_], plane: Plane
) -> tuple[NDArray[np.uint16], bool]:
    """Return the plane's part of every code, [tiles, quads, 64], and whether unused bits are 0."""
    cells = np.zeros(keep.shape, np.uint16)
    rest = buffer.view(np.uint16).copy() if plane.width == 16 else buffer.astype(np.uint16)
    low_bits = np.uint16((1 << plane.width) - 1)
    for j in range(plane.streams):
        chosen = keep[:, j :: plane.streams]
        where = _positions(chosen, offsets, plane)
        codes = (rest[where] >> (plane.width * j)) & low_bits
        cells[:, j :: plane.streams][chosen] = codes << plane.shift
        rest[where] ^= codes << (plane.width * j)
    return cells, not rest.any()


def _positions(
    chosen: NDArray[np.bool_], offsets: NDArray[np.int64], plane: Plane
) -> NDArray[np.int64]:
    """Return the position of each chosen code of one stream, in the order of the stream."""
    lengths = chosen.sum(axis=(1, 2), dtype=np.int64)
    begins = np.cumsum(lengths) - lengths
    shift = offsets[:-1] // plane.code_nbytes - begins
    where: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
    return where


def pack_mask(keep: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Return ``keep`` [tiles, quads, 64] as words [tiles, quads]; bit l is lane l."""
    packed = np.packbits(keep, axis=-1, bitorder="little")
    return packed.reshape(-1).view("<u8").reshape(keep.shape[:2]).astype(np.uint64, copy=False)


def unpack_mask(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return words [tiles, quads] as [tiles, quads, 64]; the inverse of ``pack_mask``."""
    by_byte = words.reshape(-1).view(np.uint8)
    return np.unpackbits(by_byte, bitorder="little").view(np.bool_).reshape(*words.shape, CELL)
