"""Buffers that are smaller at rest: entropy-coded in the file, expanded when a model is loaded.

A mask of random places cannot shrink below the entropy of its density, 0.88 bits a weight at 70 %
sparsity and 0.47 at 90 %; codes near zero are frequent, so that four bits of them hold 3.1 to 3.4.
What is stored is a raw deflate stream (RFC 1951), with a search for repetitions or of Huffman codes
alone, whichever is smaller on a sample. Random masks have no repetitions worth the name: without
the search they come within 2 % of their entropy, with it within 20 %. Masks of blocks are full of
them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import CorruptPack

MAX_EXPANSION = 64
"""A buffer expands to at most so many times its stored bytes: a small file fills no memory."""

_RAW = -zlib.MAX_WBITS
_LEVEL, _MEMORY = 6, 9
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
_SAMPLE = 1 << 16  # bytes that decide: the search for repetitions reads 6 MB/s of a random mask
_WORTH_IT = 63 / 64  # of the bytes; what saves less stays as it is, and is used by memory map


@dataclass(frozen=True)
class Deflated:
    """What a stored stream expands to.

    Attributes:
        dtype: NumPy name of the elements.
        nbytes: Bytes of the buffer, whole elements.
    """

    dtype: str
    nbytes: int


def deflate(buffer: NDArray[np.generic]) -> NDArray[np.uint8] | None:
    """Return the stream of a buffer, uint8 [bytes]; None where one is not worth it."""
    raw = np.ascontiguousarray(buffer).reshape(-1).view(np.uint8)
    sample = raw[max(0, raw.nbytes - _SAMPLE) // 2 :][:_SAMPLE]
    stream = _stream(raw, min(_STRATEGIES, key=lambda strategy: len(_stream(sample, strategy))))
    if not raw.nbytes / MAX_EXPANSION <= len(stream) <= _WORTH_IT * raw.nbytes:
        return None
    return np.frombuffer(stream, np.uint8)


def inflate(stream: NDArray[np.uint8], to: Deflated) -> NDArray[np.generic]:
    """Return the buffer a stream was made of, one-dimensional.

    Raises:
        CorruptPack: It is not a stream of exactly ``to.nbytes``, or promises more than
            ``MAX_EXPANSION`` times its own bytes.
    """
    if to.nbytes > MAX_EXPANSION * stream.nbytes or to.nbytes % np.dtype(to.dtype).itemsize:
        raise CorruptPack(
            f"{stream.nbytes} bytes are said to expand to {to.nbytes} of {to.dtype}; expected "
            f"whole elements, and at most {MAX_EXPANSION} times as many bytes; damaged"
        )
    reader = zlib.decompressobj(_RAW)
    try:
        # One byte more than promised would be too many; a stream ends where its bytes do.
        expanded = reader.decompress(stream.data, to.nbytes + 1)
    except zlib.error as error:
        raise CorruptPack(f"not a deflate stream ({error}); damaged") from None
    if len(expanded) != to.nbytes or not reader.eof or reader.unused_data:
        raise CorruptPack(
            f"{stream.nbytes} bytes expand to {len(expanded)} bytes or more, {to.nbytes} were "
            "promised; truncated or damaged: get it again"
        )
    return np.frombuffer(expanded, np.uint8).view(to.dtype)


def _stream(raw: NDArray[np.uint8], strategy: int) -> bytes:
    maker = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, _MEMORY, strategy)
    return maker.compress(raw.data) + maker.flush()
