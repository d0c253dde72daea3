"""The C++ kernels, run in a process of their own with a guard page after every buffer.

Integer activations must give the same bits as the NumPy statement of them, on every instruction
set; aarch64 runs under qemu where cross compiler and emulator are installed.
"""

from __future__ import annotations

import os
import platform
import struct
import subprocess

import numpy as np
import pytest
from edgesparse_kernels import activations as integer
from edgesparse_kernels.activations import Activations
from edgesparse_kernels.structured import StructuredMatrix

from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, Codes
from edgesparse.pattern import DENSE

ISAS = {"scalar": 0, "avx2": 1, "avx512": 2, "neon": 3, "dotprod": 4, "i8mm": 5}
LAYOUTS = {"nm4": 2, "n64": 3, "column16": 4, "block16x8": 5}
NAMES = ["dense2", "dense3", "dense4", "dense8", "bitmask2", "bitmask3", "bitmask4", "bitmask8"]
QEMU = "qemu-aarch64-static"
IS_X86 = platform.machine() in ("x86_64", "AMD64")


class Runner:
    """Runs cases in the built program, directly or under an emulator."""

    def __init__(self, command: list[str]):
        self.command = command

    def __call__(self, matrix, x, *, activations, isa, indices=(), mutate=None):
        case = case_of(matrix, len(x), activations, isa, len(indices), mutate)
        case += x.tobytes() + np.asarray(indices, np.int64).tobytes()
        done = subprocess.run(self.command, input=case, capture_output=True, env=without_leaks())
        if done.returncode == 2:
            return None
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr.decode()}"
        floats = np.frombuffer(done.stdout, np.float32)
        products = len(x) * matrix.rows
        return (
            floats[:products].reshape(len(x), matrix.rows),
            floats[products:].reshape(len(indices), matrix.columns),
        )


def case_of(matrix, batch, activations, isa, count=0, mutate=None) -> bytes:
    """The sizes and buffers of a matrix as the programs read them."""
    sizes = (
        matrix.rows, matrix.columns, matrix.group_size, matrix.bits, layout_of(matrix),
        batch, activations.value, ISAS[isa], count,
    )  # fmt: skip
    stored = buffers_of(matrix) | (mutate or {})
    parts = (struct.pack("<q", len(data)) + data for data in stored.values())
    return struct.pack("<9q", *sizes) + b"".join(parts)


def without_leaks() -> dict[str, str]:
    return {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}


def layout_of(matrix) -> int:
    if isinstance(matrix, StructuredMatrix):
        return LAYOUTS[matrix.layout]
    return int(matrix.is_dense)


def buffers_of(matrix) -> dict[str, bytes]:
    """The bytes of every buffer of the C interface, in its order."""
    names = ("mask", "offsets", "codes", "offsets_high", "codes_high", "scales", "index")
    attributes = {"mask": "kept"} if isinstance(matrix, StructuredMatrix) else {}
    nothing = np.zeros(0, np.uint8)
    return {name: getattr(matrix, attributes.get(name, name), nothing).tobytes() for name in names}


@pytest.fixture(scope="session")
def host(host_build) -> Runner:
    return Runner([str(host_build / "edgesparse_run_case")])


@pytest.fixture(scope="session")
def aarch64(aarch64_build) -> Runner:
    return Runner([QEMU, "-cpu", "max", str(aarch64_build / "edgesparse_run_case")])


@pytest.fixture(params=["scalar", *(["avx2", "avx512"] if IS_X86 else ["neon", "dotprod", "i8mm"])])
def host_isa(request, host, make_matrix) -> str:
    matrix, _ = make_matrix("dense4", 1, 4)
    if (
        host(matrix, np.zeros((1, 4), np.float32), activations=Activations.INT8, isa=request.param)
        is None
    ):
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def activations_for(shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return x * np.float32(3)


def check(runner, make_matrix, name, shape, *, isa, group_size, batch=1, sparsity=0.5):
    matrix, weights = make_matrix(name, *shape, group_size=group_size, sparsity=sparsity)
    compare(runner, matrix, weights, isa=isa, batch=batch)


def compare(runner, matrix, weights, *, isa, batch):
    shape = weights.shape
    x = activations_for((batch, shape[1]))
    rows = [0, shape[0] - 1]
    for mode in (Activations.INT8, Activations.INT16):
        if not integer.supports(matrix, mode):
            continue
        found = runner(matrix, x, activations=mode, isa=isa, indices=rows)
        assert np.array_equal(found[0], integer.matmul(x, matrix, mode))
        assert np.array_equal(found[1], weights[rows])
    found = runner(matrix, x, activations=Activations.FLOAT32, isa=isa)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    assert np.all(np.abs(found[0] - exact) <= 2.0**-22 * (shape[1] + 4) * magnitude)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((1, 4), 4), ((17, 129), 32), ((33, 600), 128), ((16, 256), 12), ((5, 70), 1000)],
)
def test_host(host, host_isa, make_matrix, name, shape, group_size):
    check(host, make_matrix, name, shape, isa=host_isa, group_size=group_size)


def test_host_batches(host, host_isa, make_matrix):
    for batch in (2, 8, 9):
        check(host, make_matrix, "bitmask4", (40, 300), isa=host_isa, group_size=64, batch=batch)


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 1.0])
def test_host_sparsities(host, host_isa, make_matrix, sparsity):
    check(host, make_matrix, "bitmask3", (40, 300), isa=host_isa, group_size=64, sparsity=sparsity)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", ["scalar", "neon", "dotprod", "i8mm"])
def test_aarch64_gives_the_same_bits(aarch64, make_matrix, name, isa):
    check(aarch64, make_matrix, name, (37, 300), isa=isa, group_size=64, batch=2)
    check(aarch64, make_matrix, name, (16, 131), isa=isa, group_size=20)


@pytest.mark.parametrize(("batch", "group_size"), [(3, 20), (4, 64), (9, 20), (13, 4), (17, 500)])
def test_batches_on_i8mm_give_the_same_bits(aarch64, make_matrix, batch, group_size):
    """Four rows at once, rows left over, and groups of odd numbers of quads."""
    for name in ("bitmask4", "dense8"):
        check(aarch64, make_matrix, name, (33, 210), isa="i8mm", group_size=group_size, batch=batch)


def test_a_processor_without_i8mm_takes_dot_products(aarch64, make_matrix):
    older = Runner([QEMU, "-cpu", "neoverse-n1", *aarch64.command[3:]])
    matrix, _ = make_matrix("dense4", 16, 128, group_size=64)
    x = activations_for((4, 128))
    assert older(matrix, x, activations=Activations.INT8, isa="i8mm") is None
    found = older(matrix, x, activations=Activations.INT8, isa="dotprod")
    assert np.array_equal(found[0], integer.matmul(x, matrix, Activations.INT8))


STRUCTURED = [
    ("nm4", "2:4", 0.5), ("nm4", "1:4", 0.75), ("n64", "8:64", 0.875), ("n64", "32:64", 0.5),
    ("n64", "56:64", 0.125), ("column16", "16x1", 0.5), ("column16", "16x1", 0.95),
    ("block16x8", "16x8", 0.5), ("block16x8", "32x16", 0.95),
]  # fmt: skip


# Groups that the vector loops take, that only the decoding ones do, and of no whole quads.
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((1, 1), 128), ((17, 129), 32), ((40, 1000), 128), ((33, 200), 24), ((16, 256), 12),
     ((20, 2000), 100_000), ((37, 300), 7), ((3, 1500), 704)],
)  # fmt: skip
@pytest.mark.parametrize("case", STRUCTURED, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_host_structured(host, host_isa, make_structured, case, shape, group_size):
    matrix, weights = make_structured(*case, shape, group_size=group_size)
    compare(host, matrix, weights, isa=host_isa, batch=3)


@pytest.mark.parametrize("isa", ["scalar", "neon", "dotprod", "i8mm"])
@pytest.mark.parametrize("case", STRUCTURED, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_aarch64_structured_gives_the_same_bits(aarch64, make_structured, case, isa):
    for shape, group_size in (((37, 300), 128), ((16, 1100), 100_000), ((5, 131), 20)):
        matrix, weights = make_structured(*case, shape, group_size=group_size)
        compare(aarch64, matrix, weights, isa=isa, batch=2)


@pytest.mark.parametrize(("name", "group_size"), [("bitmask16", 0), ("bitmask3", 7), ("dense8", 9)])
def test_float32_of_any_group_size(host, host_isa, make_matrix, name, group_size):
    matrix, weights = make_matrix(name, 20, 50, group_size=group_size)
    x = activations_for((2, 50))
    found, rows = host(matrix, x, activations=Activations.FLOAT32, isa=host_isa, indices=[3])
    assert np.array_equal(rows[0], weights[3])
    assert np.allclose(found, x.astype(np.float64) @ weights.T.astype(np.float64), atol=1e-3)
    assert host(matrix, x, activations=Activations.INT8, isa=host_isa) is None


def test_values_that_are_not_finite_give_nan(host, host_isa, make_matrix):
    matrix, _ = make_matrix("dense4", 16, 64)
    for value in (np.nan, np.inf, -np.inf):
        x = activations_for((1, 64))
        x[0, 5] = value
        found = host(matrix, x, activations=Activations.INT8, isa=host_isa)
        assert np.isnan(found[0]).all()


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e36])
def test_tiny_and_huge_activations(host, host_isa, make_matrix, value):
    matrix, _ = make_matrix("dense4", 16, 64)
    x = np.full((1, 64), value, np.float32)
    found = host(matrix, x, activations=Activations.INT16, isa=host_isa)
    assert np.array_equal(found[0], integer.matmul(x, matrix, Activations.INT16))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["dense4", "bitmask4"])
@pytest.mark.parametrize("code", [7, -8])
@pytest.mark.parametrize("value", [1.0, 128.0, -128.0])
def test_the_largest_codes_and_digits(host, host_isa, name, code, value, batch):
    """Sums of 16 bits come nearest to overflowing here; 128 is the digits 1 and -128."""
    shape = 16, 256
    codes = Codes(
        values=np.full(shape, code, np.int8), scales=np.ones((16, 2), np.float16),
        keep_mask=np.ones(shape, np.bool_), bits=4, group_size=128,
    )  # fmt: skip
    matrix = open_matrix(FORMATS.get(name).pack(codes, pattern=DENSE))
    x = np.full((batch, 256), value, np.float32)
    for mode in (Activations.INT8, Activations.INT16):
        x[:, ::128] = 32512.0 if mode is Activations.INT16 and value != 1.0 else value
        found, _ = host(matrix, x, activations=mode, isa=host_isa)
        assert np.array_equal(found, integer.matmul(x, matrix, mode))


@pytest.mark.parametrize("name", ["dense4", "bitmask3", "bitmask4", "bitmask16"])
def test_damaged_packs_are_refused_or_harmless(host, make_matrix, name):
    """Guard pages turn any access outside of a buffer into a crash, which fails the test."""
    matrix, _ = make_matrix(name, 20, 150)
    damage(host, matrix, Activations.FLOAT32, "scalar")


@pytest.mark.parametrize("name", ["dense3", "bitmask4", "bitmask16"])
def test_many_damaged_packs(fuzz, make_matrix, name):
    fuzz(make_matrix(name, 20, 150)[0])


@pytest.mark.parametrize("case", STRUCTURED[::2], ids=lambda case: f"{case[0]}-{case[1]}")
def test_many_damaged_structured_packs(fuzz, make_structured, case):
    fuzz(make_structured(*case, (20, 150), group_size=128)[0])


@pytest.fixture
def fuzz(host_build):
    """Open mutations of a matrix, as many as EDGESPARSE_FUZZ says."""

    def run(matrix):
        count = int(os.environ.get("EDGESPARSE_FUZZ", "1000"))
        case = case_of(matrix, 0, Activations.FLOAT32, "scalar")
        command = [str(host_build / "edgesparse_fuzz_packs"), str(count), "0"]
        done = subprocess.run(command, input=case, capture_output=True, env=without_leaks())
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr.decode()}"
        tried, refused = map(int, done.stdout.split())
        assert tried == count
        assert tried / 4 < refused < tried

    return run


@pytest.mark.parametrize("case", STRUCTURED[::2], ids=lambda case: f"{case[0]}-{case[1]}")
def test_damaged_structured_packs_are_refused_or_harmless(host, host_isa, make_structured, case):
    matrix, _ = make_structured(*case, (20, 150), group_size=128)
    damage(host, matrix, Activations.INT8, host_isa)


def damage(host, matrix, activations, isa):
    x = activations_for((1, matrix.columns))
    rng = np.random.default_rng(0)
    buffers = {key: data for key, data in buffers_of(matrix).items() if data}
    for turn in range(60):
        key = list(buffers)[turn % len(buffers)]
        data = bytearray(buffers[key])
        if turn % 3 == 0:
            data = data[: rng.integers(len(data) + 1)]
        elif turn % 3 == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            data = bytearray(rng.bytes(len(data)))
        host(matrix, x, activations=activations, isa=isa, mutate={key: bytes(data)})
