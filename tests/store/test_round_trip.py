from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from edgesparse.capture import load as capture
from edgesparse.errors import OutputExists, SourceError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.store import load, packed_entries, safetensors_nbytes, save
from edgesparse.store.layout import Entry

CLASSICS = Path(__file__).parents[2] / "examples" / "models" / "classics-4m"


def assert_same(one: CompressedModel, other: CompressedModel) -> None:
    assert one.plan == other.plan
    assert one.errors == other.errors
    assert one.metadata == other.metadata
    assert one.captured.tensors == other.captured.tensors
    assert list(one.packed) == list(other.packed)
    for name, packed in one.packed.items():
        assert packed.spec == other.packed[name].spec
        assert packed.shape == other.packed[name].shape
        for buffer, array in packed.buffers.items():
            np.testing.assert_array_equal(array, other.packed[name].buffers[buffer])
    assert one.kept.keys() == other.kept.keys()
    for name, tensor in one.kept.items():
        assert torch.equal(tensor, other.kept[name])


def test_what_is_saved_is_what_is_loaded(
    small: CapturedModel, compressed: CompressedModel, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "out")
    assert_same(compressed, load(tmp_path / "out", source=small))


def test_saving_twice_gives_the_same_bytes(compressed: CompressedModel, tmp_path: Path) -> None:
    save(compressed, tmp_path / "one")
    save(compressed, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_hugging_face_model_is_rebuilt_from_its_own_files(
    compress_by_hand: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    compressed = compress_by_hand(capture(CLASSICS), ("bitmask4",))
    save(compressed, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert_same(compressed, loaded)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (CLASSICS / name).read_bytes()
    assert loaded.captured.task == "causal-lm"
    assert loaded.captured.source.sha256 == capture(CLASSICS).source.sha256
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(loaded.captured.weights()[name], capture(CLASSICS).weights()[name])
    save(loaded, tmp_path / "again")
    assert_same(loaded, load(tmp_path / "again"))


def test_a_module_of_this_process_needs_its_source_again(
    compressed: CompressedModel, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "out")
    with pytest.raises(SourceError, match=r"'Small', which cannot be rebuilt .* name it again"):
        load(tmp_path / "out")


def test_another_source_is_refused(compressed: CompressedModel, tmp_path: Path) -> None:
    save(compressed, tmp_path / "out")
    other = capture(torch.nn.Linear(20, 21), example_inputs=torch.zeros(1, 20))
    with pytest.raises(SourceError, match=r"'embed\.weight' is not the same in the given source"):
        load(tmp_path / "out", source=other)


def test_every_packed_buffer_starts_on_a_multiple_of_64(
    compressed: CompressedModel, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "out")
    raw = (tmp_path / "out" / "weights.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert (8 + length) % 64 == 0
    for name, packed in compressed.packed.items():
        for buffer in packed.buffers:
            assert header[f"{name}.{buffer}"]["data_offsets"][0] % 64 == 0


def test_the_file_opens_with_the_reference_reader(
    compressed: CompressedModel, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "out")
    with safe_open(tmp_path / "out" / "weights.safetensors", framework="np") as file:
        for name, packed in compressed.packed.items():
            for buffer, array in packed.buffers.items():
                np.testing.assert_array_equal(file.get_tensor(f"{name}.{buffer}"), array)
        for name, tensor in compressed.kept.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor.numpy())


def test_the_size_is_predicted_from_names_types_and_shapes(
    compressed: CompressedModel, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "out")
    entries = [
        Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in compressed.kept.items()
    ]
    for name, packed in compressed.packed.items():
        sizes = {buffer: array.nbytes for buffer, array in packed.buffers.items()}
        entries += packed_entries(name, sizes)
    written = (tmp_path / "out" / "weights.safetensors").stat().st_size
    assert safetensors_nbytes(entries) == written


def test_an_existing_directory_is_replaced_only_by_force(
    small: CapturedModel, compressed: CompressedModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    save(compressed, out)
    with pytest.raises(OutputExists, match="--force"):
        save(compressed, out)
    (out / "stale.txt").write_text("from before")
    save(compressed, out, force=True)
    assert not (out / "stale.txt").exists()
    assert_same(compressed, load(out, source=small))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_does_not_replace_what_is_no_compressed_model(
    compressed: CompressedModel, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"miaow")
    with pytest.raises(OutputExists, match="not a compressed model"):
        save(compressed, tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"miaow"


def test_a_transformers_model_of_this_process_is_rebuilt_without_its_source(
    compress_by_hand: Callable[..., CompressedModel], tmp_path: Path
) -> None:
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    captured = capture(transformers.BertForMaskedLM(config).eval())
    compressed = compress_by_hand(captured, ("dense4",))
    save(compressed, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert_same(compressed, loaded)
    ours, theirs = loaded.captured.skeleton(), captured.skeleton()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with pytest.raises(SourceError, match="the original weights are not at"):
        loaded.captured.loader()
