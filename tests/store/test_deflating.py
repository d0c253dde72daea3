"""Entropy-coded buffers: what they save, that nothing is lost, what strangers can do with them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesparse.capture import load as capture
from edgesparse.errors import CorruptPack, FormatError
from edgesparse.formats.bitmask import BITMASK4
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import PackedTensor
from edgesparse.pattern import Pattern
from edgesparse.store import load, save
from edgesparse.store.deflating import MAX_EXPANSION, Deflated, deflate, inflate
from edgesparse.store.tensorfile import TensorFile, write_tensor_file

CLASSICS = Path(__file__).parents[2] / "examples" / "models" / "classics-4m"
WORDS = 1 << 14


def words(keep: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(keep, bitorder="little").view(np.uint64)


def stream(raw: bytes) -> NDArray[np.uint8]:
    maker = zlib.compressobj(wbits=-15)
    return np.frombuffer(maker.compress(raw) + maker.flush(), np.uint8)


@pytest.mark.parametrize("sparsity", [0.6, 0.7, 0.8, 0.9])
def test_a_random_mask_comes_within_three_percent_of_its_entropy(sparsity: float) -> None:
    keep = np.random.default_rng(0).random(64 * WORDS) >= sparsity
    stored = deflate(words(keep))
    assert stored is not None
    share = keep.mean()
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert entropy <= 8 * stored.nbytes / keep.size <= 1.03 * entropy


def test_a_mask_of_blocks_is_searched_for_repetitions() -> None:
    blocks = np.random.default_rng(0).random(64 * WORDS // 64) >= 0.5
    stored = deflate(words(blocks.repeat(64)))
    assert stored is not None
    assert stored.nbytes < 0.1 * 8 * WORDS  # Huffman codes alone take at least an eighth


def test_what_cannot_shrink_stays_as_it_is() -> None:
    generator = np.random.default_rng(0)
    assert deflate(words(generator.random(64 * WORDS) >= 0.5)) is None
    assert deflate(np.zeros(0, np.uint8)) is None


def test_what_would_expand_too_much_stays_as_it_is() -> None:
    assert deflate(np.zeros(1 << 16, np.uint8)) is None


@given(
    data=st.binary(max_size=600),
    repeats=st.integers(1, 8),
    dtype=st.sampled_from(["uint8", "uint64", "float16", "uint32"]),
)
def test_a_buffer_comes_back_to_the_bit(data: bytes, repeats: int, dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    buffer = np.frombuffer((data * repeats)[: len(data) * repeats // size * size], dtype)
    stored = deflate(buffer)
    if stored is None:
        return
    assert buffer.nbytes / MAX_EXPANSION <= stored.nbytes < buffer.nbytes
    back = inflate(stored, Deflated(dtype, buffer.nbytes))
    assert back.dtype == buffer.dtype
    assert back.tobytes() == buffer.tobytes()


@pytest.mark.parametrize(
    ("stored", "to"),
    [
        (stream(bytes(1000)), Deflated("uint8", 1000)),  # more than 64 times its bytes
        (stream(b"abcdefgh"), Deflated("uint8", 7)),
        (stream(b"abcdefgh"), Deflated("uint8", 9)),
        (stream(b"abcdefgh"), Deflated("uint64", 12)),
        (stream(b"abcdefgh")[:-2], Deflated("uint8", 8)),
        (np.concatenate([stream(b"abcdefgh"), np.zeros(3, np.uint8)]), Deflated("uint8", 8)),
        (np.full(10, 255, np.uint8), Deflated("uint8", 8)),
        (np.zeros(0, np.uint8), Deflated("uint8", 0)),
    ],
)
def test_a_stream_of_anything_else_is_refused(stored: NDArray[np.uint8], to: Deflated) -> None:
    with pytest.raises(CorruptPack, match=r"expand|deflate"):
        inflate(stored, to)


def test_a_bomb_is_not_expanded() -> None:
    bomb = stream(bytes(1 << 26))
    with pytest.raises(CorruptPack, match="promised"):  # stops one byte after the promise
        inflate(bomb, Deflated("uint8", 32 * bomb.nbytes))


def with_gaussian_codes(packed: PackedTensor, sparsity: float) -> PackedTensor:
    """Return other codes of the same scales, as frequent as those of weights are."""
    generator, codes = np.random.default_rng(0), packed.codes
    keep = generator.random(packed.shape) >= sparsity
    values = (2 * generator.standard_normal(packed.shape)).clip(-8, 7).astype(np.int8) * keep
    pattern = Pattern(sparsity=sparsity)
    return BITMASK4.pack(replace(codes, values=values, keep_mask=keep), pattern=pattern)


@pytest.fixture
def classics(compress_by_hand: Callable[..., CompressedModel]) -> CompressedModel:
    made = compress_by_hand(capture(CLASSICS), ("bitmask4",))
    packed = {name: with_gaussian_codes(tensor, 0.8) for name, tensor in made.packed.items()}
    return replace(made, packed=packed)


def test_a_deflated_model_is_the_same_model_in_fewer_bytes(
    classics: CompressedModel, tmp_path: Path
) -> None:
    plain, small = save(classics, tmp_path / "plain"), save(classics, tmp_path / "s", deflated=True)
    nbytes = [(path / "weights.safetensors").stat().st_size for path in (plain, small)]
    assert nbytes[1] < 0.85 * nbytes[0]
    back = load(small)
    for name, packed in classics.packed.items():
        assert back.packed[name].spec == packed.spec
        for buffer, array in packed.buffers.items():
            other = back.packed[name].buffers[buffer]
            assert (other.dtype, other.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(other, array)
    again = save(back, tmp_path / "again")
    assert (again / "weights.safetensors").read_bytes() == (
        plain / "weights.safetensors"
    ).read_bytes()


def test_only_readers_of_streams_are_asked_to_read_them(
    compressed: CompressedModel, classics: CompressedModel, tmp_path: Path
) -> None:
    def version(path: Path) -> Any:
        return json.loads((path / "edgesparse.json").read_bytes())["format_version"]

    assert version(save(classics, tmp_path / "plain")) == 1
    assert version(save(classics, tmp_path / "small", deflated=True)) == 2


def lie(pack: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the manifest says of the deflated buffers of the first packed tensor."""
    manifest = json.loads((pack / "edgesparse.json").read_bytes())
    change(next(t["packed"]["deflated"] for t in manifest["tensors"] if t["packed"]))
    (pack / "edgesparse.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda streams: streams["codes"].update(nbytes=streams["codes"]["nbytes"] - 64),
        lambda streams: streams["codes"].update(nbytes=1 << 60),
        lambda streams: streams["codes"].update(dtype="float64"),
        lambda streams: streams["codes"].update(dtype="object"),
        lambda streams: streams["codes"].update(nbytes=-64),
        lambda streams: streams.update(nothing={"dtype": "uint8", "nbytes": 64}),
        lambda streams: streams.pop("codes"),
    ],
)
def test_a_lie_about_a_stream_is_found(
    change: Callable[[dict[str, Any]], object], classics: CompressedModel, tmp_path: Path
) -> None:
    pack = save(classics, tmp_path / "pack", deflated=True)
    lie(pack, change)
    with pytest.raises(FormatError):
        load(pack)


def test_a_buffer_said_to_be_a_stream_must_be_bytes(
    small: CapturedModel, compressed: CompressedModel, tmp_path: Path
) -> None:
    pack = save(compressed, tmp_path / "pack")
    manifest = json.loads((pack / "edgesparse.json").read_bytes())
    record = next(t["packed"] for t in manifest["tensors"] if t["packed"])
    record["deflated"] = {"scales": {"dtype": "float16", "nbytes": 64}}
    (pack / "edgesparse.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptPack, match="stored as float16"):
        load(pack, source=small)


def test_streams_lie_in_the_file_as_bytes(classics: CompressedModel, tmp_path: Path) -> None:
    file = TensorFile(save(classics, tmp_path / "s", deflated=True) / "weights.safetensors")
    name = next(iter(classics.packed))
    assert file.entries[f"{name}.codes"].dtype == "uint8"
    assert len(file.array(f"{name}.codes")) < len(classics.packed[name].buffers["codes"])
    write_tensor_file(tmp_path / "copy", {n: file.array(n) for n in file.entries})
    assert (tmp_path / "copy").stat().st_size == file.nbytes
