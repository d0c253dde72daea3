"""Memory from the file alone: XNNPACK's copies by the formula, our weights where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgesparse_converters.executorch.footprint import measure_peak
from edgesparse_converters.executorch.memory import _loading, _Weights, memory_of, repacked_nbytes
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.xnnpack import Filter

from edgesparse.exporting import Artifact, export
from edgesparse.model import CompressedModel

METHODS = ("forward", "prefill")


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


@pytest.mark.parametrize(
    ("datatype", "values", "groups", "expected"),
    [
        ("qbint4", np.int8, 2, 48 * (32 + 2 * 2)),
        ("qcint4", np.int8, 1, 48 * (32 + 4)),
        ("qcint8", np.int8, 1, 48 * (64 + 4)),
        ("fp32", np.float32, 0, 48 * 4 * 64),
    ],
)
def test_in_the_file(datatype: str, values: type[np.generic], groups: int, expected: int) -> None:
    weight = Filter(
        node="XNNFullyConnected", datatype=datatype, shape=(48, 64),
        values=np.zeros((48, 64), values), scales=np.zeros((48, groups), np.float32),
    )  # fmt: skip
    assert weight.nbytes == expected


def test_loading_by_hand() -> None:
    """Delegates of 10 and 4 bytes, repacked to 12 and 5: with the first 12 + 10, in the end 17."""
    large, small = _Weights(1, 10, 12), _Weights(1, 4, 5)
    assert _loading([large, small]) == 5
    assert _loading([small, large]) == 10  # 5 + 12 + 10
    assert _loading([]) == 0


def test_methods_share_the_longest_arena(classics: CompressedModel, tmp_path: Path) -> None:
    """The runtime zeroes what ``prefill`` needs also where only ``forward`` is loaded."""
    artifact = export(classics, "executorch", tmp_path / "chat.pte", context=32, prefill=8)
    program = read_program(artifact.path)
    sizes = {name: program.methods[name]["non_const_buffer_sizes"] for name in METHODS}
    assert sizes["prefill"][1] > sizes["forward"][1]
    found = [memory_of(program, name) for name in METHODS]
    assert [memory.arena for memory in found] == 2 * [sizes["prefill"][1]]
    assert [memory.cache for memory in found] == 2 * [sizes["forward"][2]]
    small = measure_peak(artifact.path)
    if small is not None:
        assert abs(small - found[0].peak) < 2_000_000  # of 8 MB; 5 of them differ by host


def test_packed_weights_need_no_copy(classics: CompressedModel, classics_packed: Artifact) -> None:
    memory = memory_of(read_program(classics_packed.path))
    assert memory.delegates == 0
    assert memory.constants > sum(tensor.nbytes for tensor in classics.packed.values())
    assert memory.dirty == memory.arena + memory.scratch + memory.graph
    assert classics_packed.peak_nbytes == memory.peak
    assert memory.peak - memory.runtime < 4_500_000
