from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from edgesparse_kernels.matrix import PackedMatrix

from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, Codes, table_count
from edgesparse.pattern import DENSE

MakeMatrix = Callable[..., tuple[PackedMatrix, np.ndarray]]


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
