from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgesparse_kernels.matrix import PackedMatrix
from edgesparse_kernels.structured import StructuredMatrix

from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, Codes, table_count
from edgesparse.pattern import DENSE, Pattern

NATIVE = Path(__file__).parents[1] / "native"
CROSS = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64-static"
SANITIZE = "EDGESPARSE_SANITIZE" in os.environ  # `make sanitize`

MakeMatrix = Callable[..., tuple[PackedMatrix, np.ndarray]]
MakeStructured = Callable[..., tuple[StructuredMatrix, np.ndarray]]


@pytest.fixture(scope="session")
def make_matrix() -> MakeMatrix:
    """A packed matrix and its decoded weights."""

    def make(
        name, rows, columns, *, sparsity=0.5, group_size=32, seed=0, scheme="symmetric",
        table_rows=0,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        extra = {}
        layout = FORMATS.get(name)
        sparsity = 0.0 if name.startswith("dense") else sparsity
        keep = rng.random((rows, columns)) >= sparsity
        if layout.bits == 16:
            values = (rng.standard_normal(keep.shape) * keep).astype(np.float16)
            scales, group_size = np.zeros((rows, 0), np.float16), 0
        elif scheme == "table":
            values = (rng.integers(0, 2**layout.bits, keep.shape) * keep).astype(np.int8)
            scales, group_size = np.zeros((rows, 0), np.float16), 0
            table = rng.standard_normal((table_count(rows, table_rows), 2**layout.bits))
            extra = {"table": table.astype(np.float16), "table_rows": table_rows}
        else:
            limit = 2 ** (layout.bits - 1)
            values = (rng.integers(-limit, limit, keep.shape) * keep).astype(np.int8)
            groups = -(-columns // group_size)
            scales = (rng.integers(128, 256, (rows, groups)) / 4096).astype(np.float16)
            if scheme == "asymmetric":
                extra = {"zeros": rng.integers(-limit, limit, (rows, groups)).astype(np.int8)}
        codes = Codes(
            values=values, scales=scales, keep_mask=keep, bits=layout.bits, group_size=group_size,
            **extra,
        )  # fmt: skip
        return open_matrix(layout.pack(codes, pattern=DENSE)), codes.decode()

    return make


@pytest.fixture(scope="session")
def make_structured() -> MakeStructured:
    """A packed matrix with a mask of its layout's shape, and its decoded weights."""

    def make(name, text, sparsity, shape, *, group_size=32):
        rng = np.random.default_rng(0)
        rows, columns = shape
        pattern = Pattern.parse(text, sparsity=sparsity)
        if pattern.n_of_m:
            keep, of = pattern.n_of_m
            groups = -(-columns // of)
            mask = rng.random((rows, groups, of)).argsort(axis=2) < keep
            mask = mask.reshape(rows, groups * of)
        else:
            height, width = pattern.block
            mask = rng.random((-(-rows // height), -(-columns // width))) >= pattern.sparsity
            mask = mask.repeat(height, 0).repeat(width, 1)[:rows]
        mask = mask[:, :columns].copy()
        codes = Codes(
            values=(rng.integers(-8, 8, shape) * mask).astype(np.int8),
            scales=(rng.integers(128, 256, (rows, -(-columns // group_size))) / 4096).astype(
                np.float16
            ),
            keep_mask=mask,
            bits=4,
            group_size=group_size,
        )
        return open_matrix(FORMATS.get(name).pack(codes, pattern=pattern)), codes.decode()

    return make


def build(folder: Path, *options: str) -> Path:
    """Build the native library and the programs that run its cases; return where they are."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("needs cmake and a C++ compiler")
    configure = ["cmake", "-S", str(NATIVE), "-B", str(folder), "-DEDGESPARSE_BUILD_CASE_RUNNER=ON"]
    if SANITIZE and not options:
        configure.append("-DEDGESPARSE_SANITIZE=ON")
    for command in ([*configure, *options], ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def host_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="session")
def aarch64_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(CROSS) is None or shutil.which(QEMU) is None:
        pytest.skip(f"needs {CROSS} and {QEMU}")
    return build(
        tmp_path_factory.mktemp("aarch64"),
        f"-DCMAKE_CXX_COMPILER={CROSS}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
