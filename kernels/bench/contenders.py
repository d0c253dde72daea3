"""What is timed: our kernels, and what else a user would take, as functions of a copy's number."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from edgesparse_kernels import matmul as kernels
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.columns import by_column, multiplier
from edgesparse_kernels.held import for_products, is_faster_as_dense
from edgesparse_kernels.layout import aligned_copy
from edgesparse_kernels.matmul import AnyMatrix
from edgesparse_kernels.matrix import PackedMatrix
from numpy.typing import NDArray

from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import Pattern

Floats = NDArray[np.float32]


@dataclass
class Contender:
    """One way to multiply: ``run(i)`` multiplies by the i-th copy of the weights."""

    name: str
    run: Callable[[int], None]
    nbytes: int
    error: float = float("nan")


OURS = [
    ("dense4", "unstructured", 0.0), ("bitmask4", "unstructured", 0.5),
    ("bitmask4", "unstructured", 0.7), ("bitmask4", "unstructured", 0.9), ("nm4", "2:4", 0.5),
    ("n64", "16:64", 0.75), ("n64", "8:64", 0.875), ("column16", "16x1", 0.5),
    ("column16", "16x1", 0.7), ("column16", "16x1", 0.9), ("block16x8", "16x8", 0.5),
]  # fmt: skip


def mask_of(
    pattern: Pattern, shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a random mask of ``pattern``."""
    rows, columns = shape
    if pattern.n_of_m:
        keep, of = pattern.n_of_m
        order = rng.random((rows, columns // of, of), np.float32).argsort(axis=2)
        return (order < keep).reshape(shape)
    height, width = pattern.block
    kept = rng.random((-(-rows // height), -(-columns // width))) >= pattern.sparsity
    return kept.repeat(height, 0).repeat(width, 1)[:rows, :columns].copy()


def ours(
    weights: Floats, x: Floats, copies: Callable[[int], int], threads: int, kind: Activations
) -> Iterator[Contender]:
    """Yield our kernels on random masks, group 128."""
    for name, packed, decoded in packed_weights(weights):
        for words, hold in ways(name, copies(packed.nbytes) * weights.size):
            nbytes = nbytes_held(hold(open_matrix(packed)), packed)
            matrices = [hold(open_matrix(copy_of(packed))) for _ in range(copies(nbytes))]
            out = np.empty((len(x), len(weights)), np.float32)

            def run(i: int, matrices=matrices, out=out) -> None:
                kernels.matmul(x, matrices[i % len(matrices)], out=out, kind=kind, threads=threads)

            for i in range(len(matrices)):  # what a matrix becomes when it is first multiplied
                run(i)
            exact = x.astype(np.float64) @ decoded.T.astype(np.float64)
            error = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
            yield Contender(f"{name}{words}", run, nbytes, error)


def skipping(weights: Floats, x: Floats, copies: Callable[[int], int]) -> Iterator[Contender]:
    """Yield products of one row, weights column by column, that skip its smallest activations."""
    _, packed, decoded = next(packed_weights(weights))
    by_columns, row = by_column(open_matrix(packed)), x[0]
    for share in (0.0, 0.25, 0.5, 0.75):
        kept = np.where(np.abs(row) < np.quantile(np.abs(row), share), np.float32(0), row)
        nbytes = int((1 - share) * by_columns.codes.nbytes) + by_columns.scales.nbytes
        calls = [
            multiplier(replace(by_columns, codes=aligned_copy(by_columns.codes)), kept)
            for _ in range(copies(nbytes))
        ]

        def run(i: int, calls=calls) -> None:
            calls[i % len(calls)]()

        exact = decoded.astype(np.float64) @ kept.astype(np.float64)
        error = float(np.linalg.norm(calls[0]()[: len(weights)] - exact) / np.linalg.norm(exact))
        name = f"columns, {100 * share:.0f} % of activations skipped"
        yield Contender(name, run, nbytes, error)


def packed_weights(weights: Floats) -> Iterator[tuple[str, PackedTensor, Floats]]:
    """Yield name, pack and decoded values of ``weights`` with a random mask for each layout."""
    rows = len(weights)
    for name, text, sparsity in OURS:
        pattern = Pattern.parse(text, sparsity=sparsity)
        keep = mask_of(pattern, weights.shape, np.random.default_rng(1))
        grouped = np.where(keep, weights, 0).reshape(rows, -1, 128)
        scales = (np.abs(grouped).max(axis=2) / 7).astype(np.float16)
        scales = np.where(scales > 0, scales, np.float16(1))
        values = np.rint(grouped / scales[..., None].astype(np.float32)).clip(-8, 7)
        codes = Codes(
            values=values.reshape(weights.shape).astype(np.int8),
            scales=scales,
            keep_mask=keep,
            bits=4,
            group_size=128,
        )
        packed = FORMATS.get(name).pack(codes, pattern=pattern)
        yield f"{name} {100 * sparsity:.0f} %", packed, codes.decode()


def ways(name: str, weights: int) -> list[tuple[str, Callable[[AnyMatrix], AnyMatrix]]]:
    """Return how a layout is held where ``weights`` take turns: words for it, and what does it."""
    if not name.startswith("bitmask4") or not is_faster_as_dense(weights):
        return [("", lambda matrix: matrix)]
    return [
        (", as dense", partial(for_products, weights=weights)),
        (", in place", lambda matrix: matrix),
    ]


def nbytes_held(matrix: AnyMatrix, packed: PackedTensor) -> int:
    """Return the bytes a product reads."""
    return matrix.nbytes if isinstance(matrix, PackedMatrix) else packed.nbytes


def copy_of(packed: PackedTensor) -> PackedTensor:
    """Return the same pack in memory of its own, placed as a mapped file would be."""
    buffers = {name: aligned_copy(buffer) for name, buffer in packed.buffers.items()}
    return type(packed)(spec=packed.spec, shape=packed.shape, buffers=buffers)


def ggml(
    library: Path, weights: Floats, x: Floats, copies: Callable[[int], int], threads: int
) -> Iterator[Contender]:
    """Yield llama.cpp's product by type and buffer, from a library of peers/ggml_product.cpp."""
    peer = ctypes.CDLL(str(library))
    peer.peer_open.restype = ctypes.c_void_p
    rows, columns = weights.shape
    pointer = ctypes.POINTER(ctypes.c_float)
    out = np.empty((len(x), rows), np.float32)
    for kind, bits in (("q4_0", 4.5), ("q4_K", 4.5)):
        for buffer in ("CPU", "CPU_REPACK", "AMX"):
            nbytes = int(rows * columns * bits / 8)
            count = copies(nbytes)
            handle = peer.peer_open(
                kind.encode(), buffer.encode(), ctypes.c_int64(rows), ctypes.c_int64(columns),
                weights.ctypes.data_as(pointer), ctypes.c_int64(len(x)), threads, count,
            )  # fmt: skip
            if not handle:
                continue

            def run(i: int, handle=handle, count=count) -> None:
                peer.peer_run(
                    ctypes.c_void_p(handle), i % count,
                    x.ctypes.data_as(pointer), out.ctypes.data_as(pointer),
                )  # fmt: skip

            run(0)
            exact = x.astype(np.float64) @ weights.T.astype(np.float64)
            error = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
            yield Contender(f"llama.cpp {kind} {buffer}", run, nbytes, error)


def torch_products(
    weights: Floats, x: Floats, copies: Callable[[int], int], threads: int
) -> Iterator[Contender]:
    """Yield torch's float32, bfloat16 and 4-bit products."""
    import torch

    torch.set_num_threads(threads)
    dense, x32 = torch.from_numpy(weights), torch.from_numpy(x)
    for dtype in (torch.float32, torch.bfloat16):
        nbytes = dense.numel() * dtype.itemsize
        stack = [dense.to(dtype, copy=True) for _ in range(copies(nbytes))]
        rounded = x32.to(dtype)

        def run(i: int, stack=stack, x=rounded) -> None:
            torch.nn.functional.linear(x, stack[i % len(stack)])

        yield Contender(f"torch {str(dtype)[6:]}", run, nbytes)
    codes = torch.randint(0, 16, dense.shape, dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    groups = torch.ones(dense.shape[1] // 128, dense.shape[0], 2, dtype=torch.bfloat16)
    stack = [packed.clone() for _ in range(copies(packed.nbytes))]
    half = x32.to(torch.bfloat16)

    def int4(i: int) -> None:
        torch.ops.aten._weight_int4pack_mm_for_cpu(half, stack[i % len(stack)], 128, groups)

    yield Contender("torch int4 g128", int4, packed.nbytes)


def csr(weights: Floats, x: Floats, copies: Callable[[int], int]) -> Iterator[Contender]:
    """Yield SciPy's sparse product in float32 at 50 % and 90 %."""
    from scipy.sparse import csr_array

    for sparsity in (0.5, 0.9):
        keep = mask_of(Pattern(sparsity=sparsity), weights.shape, np.random.default_rng(1))
        matrix = csr_array(np.where(keep, weights, 0))
        nbytes = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
        stack = [matrix.copy() for _ in range(copies(nbytes))]

        def run(i: int, stack=stack) -> None:
            stack[i % len(stack)] @ x.T

        yield Contender(f"scipy csr {100 * sparsity:.0f} %", run, nbytes)


def torch_csr(
    weights: Floats, x: Floats, copies: Callable[[int], int], threads: int
) -> Iterator[Contender]:
    """Yield torch's sparse product, which is MKL's, in float32 at 50 % and 90 %."""
    import torch

    torch.set_num_threads(threads)
    columns = torch.from_numpy(np.ascontiguousarray(x.T))
    for sparsity in (0.5, 0.9):
        keep = mask_of(Pattern(sparsity=sparsity), weights.shape, np.random.default_rng(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sparse tensors are in beta, says torch
            matrix = torch.from_numpy(np.where(keep, weights, 0)).to_sparse_csr()
        parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
        nbytes = sum(part.nbytes for part in parts)
        stack = [matrix.clone() for _ in range(copies(nbytes))]

        def run(i: int, stack=stack) -> None:
            stack[i % len(stack)] @ columns

        yield Contender(f"torch csr {100 * sparsity:.0f} %", run, nbytes)
