"""Time the C++ kernels of one build, or of several against each other.

    cmake -S kernels/native -B build/shared -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON
    cmake --build build/shared
    python kernels/bench/native_speed.py before.so build/shared/libedgesparse_kernels.so

Libraries are interleaved in random order; a figure is the 25th percentile of the samples, in
microseconds, and the ratio is the first library's time over the last one's. All of them must give
the bits of NumPy. Quantizing the activations and two calls from Python are part of every time.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from contenders import Contender, Floats, copy_of, packed_weights
from edgesparse_kernels import activations as integer
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.matmul import AnyMatrix
from edgesparse_kernels.structured import StructuredMatrix
from products import STREAMED_NBYTES, measure

from edgesparse.formats.operand import open_matrix

ISAS = ("scalar", "avx2", "avx512", "neon", "dotprod", "i8mm")  # as the C interface counts them
LAYOUTS = ("bitmask", "dense", "nm4", "n64", "column16", "block16x8")
BUFFERS = ("mask", "offsets", "codes", "offsets_high", "codes_high", "scales", "index")


class Buffer(ctypes.Structure):
    """``edgesparse_buffer``."""

    _fields_ = (("data", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class Pack(ctypes.Structure):
    """``edgesparse_pack``."""

    _fields_ = (
        ("rows", ctypes.c_int64), ("columns", ctypes.c_int64), ("group_size", ctypes.c_int64),
        ("bits", ctypes.c_int32), ("layout", ctypes.c_int32),
        *((name, Buffer) for name in BUFFERS),
    )  # fmt: skip


class Opened(ctypes.Structure):
    """``edgesparse_matrix``."""

    _fields_ = (
        ("sizes", ctypes.c_int64 * 6), ("kinds", ctypes.c_int32 * 3),
        ("pointers", ctypes.c_void_p * 7),
    )  # fmt: skip


class Library:
    """A build of the kernels, on one instruction set."""

    def __init__(self, path: Path, isa: str):
        self.functions = ctypes.CDLL(str(path.resolve()))
        self.functions.edgesparse_workspace_nbytes.restype = ctypes.c_size_t
        if self.functions.edgesparse_choose_isa(ISAS.index(isa)):
            raise SystemExit(f"error: {path}: this processor or build has no {isa}")

    def opened(self, matrix: AnyMatrix) -> Opened:
        """Return ``matrix`` as the library checked it, on the same memory."""
        structured = isinstance(matrix, StructuredMatrix)
        layout = matrix.layout if structured else LAYOUTS[matrix.is_dense]
        buffers = {
            name: getattr(matrix, "kept" if structured and name == "mask" else name, None)
            for name in BUFFERS
        }
        pack = Pack(
            matrix.rows, matrix.columns, matrix.group_size, matrix.bits, LAYOUTS.index(layout),
            *(Buffer(array.ctypes.data, array.nbytes) if array is not None else Buffer(None, 0)
              for array in buffers.values()),
        )  # fmt: skip
        opened = Opened()
        if status := self.functions.edgesparse_open(ctypes.byref(pack), ctypes.byref(opened)):
            raise SystemExit(f"error: the library refuses a pack of {layout}: status {status}")
        return opened

    def product(
        self, matrices: list[AnyMatrix], x: Floats, out: Floats, kind: Activations
    ) -> Callable[[int], None]:
        """Return a function that multiplies ``x`` by the i-th of equally large matrices."""
        opened = [self.opened(matrix) for matrix in matrices]
        batch, mode = ctypes.c_int64(len(x)), kind.value
        first, last = ctypes.c_int64(0), ctypes.c_int64(-(-out.shape[1] // 16))
        nbytes = self.functions.edgesparse_workspace_nbytes(ctypes.byref(opened[0]), batch, mode)
        workspace = ctypes.create_string_buffer(nbytes)
        # Unlike bare addresses these hold on to their arrays.
        at, to = x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)

        def run(i: int) -> None:
            matrix = ctypes.byref(opened[i % len(matrices)])  # which points into those
            self.functions.edgesparse_prepare(matrix, at, batch, mode, workspace)
            self.functions.edgesparse_linear(matrix, workspace, batch, mode, first, last, None, to)

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="+", type=Path, help="shared libraries of the kernels")
    parser.add_argument("--isa", default="avx2", choices=ISAS)
    parser.add_argument("--shape", default="4096x4096")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--activations", default="int8", choices=["int8", "int16", "float32"])
    parser.add_argument("--only", default="", help="regular expression over the rows")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cached", action="store_true", help="one copy of the weights")
    arguments = parser.parse_args()
    rows, columns = (int(size) for size in arguments.shape.split("x"))
    kind = Activations[arguments.activations.upper()]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, columns)).astype(np.float32)
    x = rng.standard_normal((arguments.batch, columns)).astype(np.float32)
    libraries = [Library(path, arguments.isa) for path in arguments.libraries]
    sys.stdout.write(
        f"{arguments.shape}, {'in cache' if arguments.cached else 'streamed'}, batch "
        f"{arguments.batch}, one thread, {arguments.activations} activations, {arguments.isa}\n\n"
        f"| product | {' | '.join(str(path) for path in arguments.libraries)} | × |\n"
        f"|{'---|' * (len(libraries) + 2)}\n"
    )
    for name, packed, _ in packed_weights(weights):
        if not re.search(arguments.only, name):
            continue
        count = 1 if arguments.cached else -(-STREAMED_NBYTES // packed.nbytes)
        matrices = [open_matrix(copy_of(packed)) for _ in range(count)]
        contenders = [
            contender(str(i), library, matrices, x, kind) for i, library in enumerate(libraries)
        ]
        times = list(measure(contenders, arguments.rounds).values())
        figures = " | ".join(f"{time:.0f}" for time in times)
        sys.stdout.write(f"| {name} | {figures} | {times[0] / times[-1]:.2f} |\n")
        sys.stdout.flush()


def contender(
    name: str, library: Library, matrices: list[AnyMatrix], x: Floats, kind: Activations
) -> Contender:
    """Return a library's product, once it has given the bits of NumPy."""
    out = np.empty((len(x), matrices[0].rows), np.float32)
    run = library.product(matrices, x, out, kind)
    run(0)
    if kind is not Activations.FLOAT32 and not np.array_equal(
        out, integer.matmul(x, matrices[0], kind)
    ):
        raise SystemExit("error: a product differs from NumPy's")
    return Contender(name, run, 0)


if __name__ == "__main__":
    main()
