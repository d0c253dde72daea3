"""A keep mask as a PNG, one pixel a weight: nothing but zlib is needed to write one."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 512


def mask_png(keep_mask: NDArray[np.bool_]) -> bytes:
    """Return the top left of a keep mask as a one-bit PNG: kept is dark.

    Args:
        keep_mask: bool [N, K].
    """
    shown = keep_mask[:MOST_PIXELS, :MOST_PIXELS]
    height, width = shown.shape
    rows = np.packbits(~shown, axis=1)
    # Each row of a PNG begins with its filter; 0 is none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def data_uri(png: bytes) -> str:
    """Return the PNG as text that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
