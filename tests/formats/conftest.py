from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgesparse.packed import Codes, matrix_shape, table_count

MakeCodes = Callable[..., Codes]


@pytest.fixture
def make_codes() -> MakeCodes:
    """Random codes of any scheme: every code of the range occurs, kept zeros among them."""

    def make(
        shape: tuple[int, ...],
        *,
        bits: int,
        group_size: int = 32,
        sparsity: float = 0.5,
        seed: int = 0,
        scheme: str = "symmetric",
        table_rows: int = 0,
    ) -> Codes:
        rng = np.random.default_rng(seed)
        extra = {}
        rows, columns = matrix_shape(shape)
        keep = rng.random(shape) >= sparsity
        if bits == 16:
            values = (rng.standard_normal(shape) * keep).astype(np.float16)
            scales, group_size = np.zeros((rows, 0), np.float16), 0
        elif scheme == "table":
            values = (rng.integers(0, 2**bits, shape) * keep).astype(np.int8)
            scales, group_size = np.zeros((rows, 0), np.float16), 0
            table = rng.standard_normal((table_count(rows, table_rows), 2**bits))
            extra = {"table": table.astype(np.float16), "table_rows": table_rows}
        else:
            limit = 2 ** (bits - 1)
            values = (rng.integers(-limit, limit, shape) * keep).astype(np.int8)
            groups = -(-columns // group_size)
            scales = (rng.integers(128, 256, (rows, groups)) / 4096).astype(np.float16)
            if scheme == "asymmetric":
                extra = {"zeros": rng.integers(-limit, limit, (rows, groups)).astype(np.int8)}
        return Codes(
            values=values, scales=scales, keep_mask=keep, bits=bits, group_size=group_size, **extra
        )

    return make
