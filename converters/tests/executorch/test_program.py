"""Files that are no whole ``.pte`` end in a SourceError before any runtime sees them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from edgesparse_converters.executorch.program import read_program

from edgesparse.errors import SourceError
from edgesparse.exporting import Artifact


def damaged(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "damaged.pte"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"ET12", "too few"),
        (os.urandom(4096), "identifier"),
        (b"PK\3\4" * 50, "identifier"),
        (b"\0\0\0\0ET12" + b"\0" * 100, "flatbuffer"),
        (b"\0\0\0\0ET12eh00" + b"\xff" * 100, "header promises"),
    ],
)
def test_not_a_program(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_program(damaged(tmp_path, data))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        read_program(tmp_path / "nothing.pte")


def test_cut_anywhere(tmp_path: Path, classics_packed: Artifact) -> None:
    data = classics_packed.path.read_bytes()
    for length in (40, 1000, len(data) // 2, len(data) - 64):
        with pytest.raises(SourceError):
            read_program(damaged(tmp_path, data[:length]))


def test_a_flatbuffer_of_noise(tmp_path: Path, classics_packed: Artifact) -> None:
    data = bytearray(classics_packed.path.read_bytes())
    data[64:20_000] = os.urandom(20_000 - 64)
    with pytest.raises(SourceError, match="flatbuffer"):
        read_program(damaged(tmp_path, bytes(data)))


def test_segments_without_their_header(tmp_path: Path, classics_packed: Artifact) -> None:
    data = bytearray(classics_packed.path.read_bytes())
    data[8:12] = b"eh99"
    with pytest.raises(SourceError, match="extended header is missing"):
        read_program(damaged(tmp_path, bytes(data)))


def test_what_is_in_a_program(classics_packed: Artifact) -> None:
    program = read_program(classics_packed.path)
    assert set(program.methods) == {"forward", "edgesparse"}
    assert "edgesparse::embedding.out" in program.operators
    parts = program.flatbuffer_nbytes + program.constants_nbytes
    parts += sum(len(data) for data in program.named.values())
    parts += sum(len(data) for _, data in program.delegates("forward"))
    assert parts <= program.nbytes == classics_packed.path.stat().st_size
    assert program.nbytes - parts < 64 * 200  # what is left is alignment
