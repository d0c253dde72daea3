"""Memory from the file alone: XNNPACK's copies by the formula, our weights where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_converters.executorch.memory import memory_of, repacked_nbytes
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.xnnpack import Filter

from edgesparse.exporting import Artifact
from edgesparse.model import CompressedModel


@pytest.mark.parametrize(
    ("datatype", "shape", "groups", "expected"),
    [
        ("qbint4", (48, 64), 2, 48 * (32 + 2 * 2 + 8)),
        ("qbint4", (7, 64), 2, 16 * (32 + 2 * 2 + 8)),
        ("qcint4", (48, 64), 1, 48 * (32 + 12)),
        ("qcint8", (48, 64), 1, 48 * (64 + 12)),
        ("fp32", (8, 3, 3, 3), 0, 4 * 16 * (27 + 1)),
    ],
)
def test_repacked(datatype: str, shape: tuple[int, ...], groups: int, expected: int) -> None:
    weight = Filter(
        node="XNNFullyConnected",
        datatype=datatype,
        shape=shape,
        values=np.zeros(shape, np.int8),
        scales=np.zeros((shape[0], groups), np.float32),
    )
    assert repacked_nbytes(weight) == expected


def test_packed_weights_need_no_copy(classics: CompressedModel, classics_packed: Artifact) -> None:
    memory = memory_of(read_program(classics_packed.path))
    assert memory.delegates == 0
    assert memory.constants > sum(tensor.nbytes for tensor in classics.packed.values())
    assert memory.dirty == memory.arena + memory.scratch + memory.graph
    assert classics_packed.peak_nbytes == memory.peak
    assert memory.peak - memory.runtime < 4_500_000
