from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.store.layout import CODE_OF_DTYPE, METADATA, Entry, lay_out, safetensors_nbytes
from edgesparse.store.tensorfile import TensorFile, write_tensor_file

DTYPES = [dtype for dtype in CODE_OF_DTYPE if dtype not in ("uint16", "uint32", "uint64")]
names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
).filter(lambda name: name != METADATA)
shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
entries = st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=8).map(
    lambda items: [Entry(name, dtype, shape) for name, (dtype, shape) in items.items()]
)


def filled(entry: Entry) -> torch.Tensor:
    """Return a tensor of this entry with values that tell places apart."""
    values = torch.arange(max(1, entry.nbytes // entry.itemsize)) % 2
    return (
        values[: entry.nbytes // entry.itemsize].to(getattr(torch, entry.dtype)).view(entry.shape)
    )


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_one_small_file_by_hand(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(3, dtype=np.uint8),
        "a": np.array([1.5], np.float32),
        "big": np.arange(64, dtype=np.uint8),
    }
    write_tensor_file(tmp_path / "f", tensors)
    raw = (tmp_path / "f").read_bytes()
    header = (
        '{"__metadata__":{"format":"pt"},'
        '"big":{"dtype":"U8","shape":[64],"data_offsets":[0,64]},'
        '"a":{"dtype":"F32","shape":[1],"data_offsets":[64,68]},'
        '"b":{"dtype":"U8","shape":[3],"data_offsets":[68,71]}}'
    )
    padded = header.ljust(248)  # 8 + 248 is the next multiple of 64
    assert raw[:8] == (248).to_bytes(8, "little")
    assert raw[8:256].decode() == padded
    assert raw[256:] == bytes(range(64)) + np.float32(1.5).tobytes() + bytes(range(3))
    assert safetensors_nbytes([Entry("b", "uint8", (3,)), Entry("a", "float32", (1,)),
                               Entry("big", "uint8", (64,))]) == len(raw)  # fmt: skip


def test_a_name_the_format_needs_itself_is_refused() -> None:
    with pytest.raises(FormatError, match="cannot be called '__metadata__'"):
        safetensors_nbytes([Entry(METADATA, "bool", ())])


@given(entries)
def test_written_files_open_with_the_reference_reader(entries: list[Entry]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "f.safetensors"
        tensors = {entry.name: filled(entry) for entry in entries}
        write_tensor_file(path, tensors)
        assert path.stat().st_size == safetensors_nbytes(entries)
        theirs, ours = load_file(path), TensorFile(path)
        assert theirs.keys() == tensors.keys() == ours.entries.keys()
        for name, tensor in tensors.items():
            assert theirs[name].dtype == ours.tensor(name).dtype == tensor.dtype
            assert torch.equal(theirs[name], tensor)
            assert torch.equal(ours.tensor(name), tensor)


@given(entries)
def test_every_place_is_aligned(entries: list[Entry]) -> None:
    layout = lay_out(entries)
    begin = len(layout.header)
    assert begin % 64 == 0
    for entry in layout.entries:
        assert begin % (64 if entry.nbytes % 64 == 0 else entry.itemsize) == 0
        begin += entry.nbytes
    assert begin == layout.nbytes


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_unsigned_types_of_packed_buffers(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(7, dtype=torch.int32).to(dtype)
    write_tensor_file(tmp_path / "f", {"x": tensor})
    with safe_open(tmp_path / "f", framework="pt") as file:
        assert torch.equal(file.get_tensor("x"), tensor)
    assert torch.equal(TensorFile(tmp_path / "f").tensor("x"), tensor)


def test_files_of_others_are_read_at_any_alignment(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3, dtype=torch.int8), "b": torch.arange(5, dtype=torch.float64)}
    write(
        tmp_path / "f",
        {
            "a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "F64", "shape": [5], "data_offsets": [3, 43]},
        },
        b"".join(tensor.numpy().tobytes() for tensor in tensors.values()),
    )
    for name, tensor in tensors.items():
        assert torch.equal(TensorFile(tmp_path / "f").tensor(name), tensor)
    save_file(tensors, tmp_path / "g", metadata={"any": "thing"})
    for name, tensor in tensors.items():
        assert torch.equal(TensorFile(tmp_path / "g").tensor(name), tensor)


def one(**changes: object) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"x":1}', "no dtype, shape and offsets"),
        (b'{"x":1,"x":1}', "a key appears twice"),
        (b"[" * 60_000, "nested too deeply"),
        (one(dtype="F8_E4M3"), "has dtype 'F8_E4M3'; known"),
        (one(shape=[2, -3]), "no dtype, shape and offsets"),
        (one(shape=[2, True]), "no dtype, shape and offsets"),
        (one(shape=[2, 3.0]), "no dtype, shape and offsets"),
        (one(shape=[2, 4]), "needs 32 bytes, its offsets give it 24"),
        (one(shape=[2**70, 0]), "impossible shape"),
        (one(shape=[1] * 20 + [6]), "impossible shape"),
        (one(data_offsets=[0, 25]), "needs 24 bytes"),
        (one(data_offsets=[24, 0]), "needs 24 bytes"),
        (one(data_offsets=[4, 28]), "overlap or leave holes"),
        (one(data_offsets=[2**80, 2**80 + 24]), "overlap or leave holes"),
        ({**one(), "y": one()["x"]}, "overlap or leave holes"),
        ({}, "describes .* bytes, the file has"),
    ],
)
def test_headers_that_lie_are_refused(header: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "f", header, bytes(24))
    with pytest.raises(CorruptPack, match=message):
        TensorFile(path)
    if message != "impossible shape":  # the reference reader has no limit on dimensions of 1
        with pytest.raises((SafetensorError, TypeError, ValueError)), safe_open(path, "np") as file:
            file.get_tensor("x")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CorruptPack, match="not a regular file"):
            TensorFile(path)
    with pytest.raises(CorruptPack, match="cannot read"):
        TensorFile(tmp_path / "absent")


def test_a_length_beyond_the_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptPack, match="header of 9223372036854775808 bytes"):
        TensorFile(tmp_path / "f")


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="x: dtype complex64 cannot be stored"):
        write_tensor_file(tmp_path / "f", {"x": torch.zeros(1, dtype=torch.complex64)})
    assert not (tmp_path / "f").exists()


def test_non_contiguous_tensors_are_stored_in_their_own_order(tmp_path: Path) -> None:
    tensor = torch.arange(12, dtype=torch.float32).view(3, 4).t()
    write_tensor_file(tmp_path / "f", {"x": tensor, "y": np.arange(6).reshape(2, 3).T})
    assert torch.equal(load_file(tmp_path / "f")["x"], tensor)
    np.testing.assert_array_equal(
        TensorFile(tmp_path / "f").array("y"), np.arange(6).reshape(2, 3).T
    )
