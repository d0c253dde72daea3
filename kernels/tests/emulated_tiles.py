"""The products of matrix tiles where a processor has none: tile registers emulated in memory.

A program of its own, run with ``NUMBA_CACHE_DIR`` set elsewhere: numba's cache does not see that
the functions under ``amx_batch`` are others.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
from edgesparse_kernels import _amx, _isa
from edgesparse_kernels._jit import jit
from edgesparse_kernels._simd import as_pointer
from numba import carray

_ROOM = np.zeros(1 << 14, np.uint8)
_AT = _ROOM.ctypes.data
_STATE, _DIGITS, _LANES, _SUMS = _AT, _AT + 64, _AT + 64 + 1024, _AT + 64 + 2048


@jit
def _bytes(at, count):
    return carray(as_pointer(at), (count,), np.uint8)


@jit
def _copy(to, at, count):
    _bytes(to, count)[:] = _bytes(at, count)


@jit
def begin_tiles(isa, cells):
    _bytes(_STATE, 1)[0] = cells
    return 0


@jit
def end_tiles(isa, before):
    _bytes(_STATE, 1)[0] = 0


@jit
def load_digits(isa, at, width):
    assert width == 4 * _bytes(_STATE, 1)[0]
    _copy(_DIGITS, at, 16 * width)


@jit
def load_cells(isa, at):
    _copy(_LANES, at, 64 * _bytes(_STATE, 1)[0])


@jit
def clear_sums(isa, number):
    _bytes(_SUMS + 1024 * number, 1024)[:] = 0


@jit
def load_sums(isa, number, at):
    _copy(_SUMS + 1024 * number, at, 1024)


@jit
def store_sums(isa, number, at):
    _copy(at, _SUMS + 1024 * number, 1024)


@jit
def add_products(isa, number):
    """Sums [16, 16] of digits [16, 4 cells] and lanes [cells, 16, 4]."""
    cells = np.int64(_bytes(_STATE, 1)[0])
    digits = carray(as_pointer(_DIGITS), (16, 4 * cells), np.int8)
    lanes = carray(as_pointer(_LANES), (cells, 16, 4), np.uint8)
    sums = carray(as_pointer(_SUMS + 1024 * number), (16, 16), np.int32)
    for row in range(16):
        for cell in range(cells):
            for of in range(16):
                for c in range(4):
                    sums[row, of] += np.int32(digits[row, 4 * cell + c]) * lanes[cell, of, c]


def install() -> None:
    """Put the emulation in the place of tiles, before the kernels that use them are imported."""
    module = ModuleType("edgesparse_kernels._amx")
    module.__dict__.update({**_amx.__dict__, **{name: globals()[name] for name in _EMULATED}})
    sys.modules["edgesparse_kernels._amx"] = module
    from edgesparse_kernels import amx_batch

    amx_batch.takes_tiles, amx_batch.arrange = amx_batch.takes, amx_batch.in_blocks
    amx_batch.tile_batch = amx_batch.on_tiles


_EMULATED = {
    "begin_tiles", "end_tiles", "load_digits", "load_cells", "clear_sums", "load_sums",
    "store_sums", "add_products",
}  # fmt: skip


def main() -> None:
    install()
    from edgesparse_kernels import activations
    from test_activations import INTEGERS, draw, product  # after the emulation is in place

    conftest = __import__("conftest")
    make = conftest.make_matrix.__wrapped__()
    cases = 0
    for name in ("dense4", "bitmask4", "bitmask3", "dense8", "dense2"):
        for shape, group_size in (
            ((17, 129), 32), ((33, 600), 128), ((70, 300), 1000), ((20, 700), 96), ((40, 200), 24),
            ((16, 1100), 320), ((5, 256), 64),
        ):  # fmt: skip
            matrix, _ = make(name, *shape, group_size=group_size)
            for batch in (3, 5, 16, 17, 64):
                x = draw((batch, shape[1]))
                for kind in INTEGERS:
                    found = product(x, matrix, kind)
                    assert np.array_equal(found, activations.matmul(x, matrix, kind)), (
                        name, shape, group_size, batch, kind,
                    )  # fmt: skip
                    cases += 1
    sys.stdout.write(f"{cases} products on {_isa.best().name}\n")


if __name__ == "__main__":
    main()
