from __future__ import annotations

import json
import logging
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgesparse.capture import load
from edgesparse.errors import SourceError

CLASSICS = Path(__file__).parents[2] / "examples" / "models" / "classics-4m"
Saved = Callable[..., tuple[Any, Path]]


@pytest.fixture
def directory(saved: Saved, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved("llama")[1], tmp_path / "model"))


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    captured = load(directory)
    return {tensor.name: captured.weights()[tensor.name] for tensor in captured.tensors}


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: value.clone() for name, value in tensors_of(directory).items()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_bin_file_is_read_without_unpickling_code(directory: Path, zipped: bool) -> None:
    expected = tensors_of(directory)
    (directory / "model.safetensors").unlink()
    target = directory / "pytorch_model.bin"
    torch.save(expected, target, _use_new_zipfile_serialization=zipped)
    assert same(tensors_of(directory), expected)


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_a_bin_file_that_torch_falls_over_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    # Found by fuzzing: a persistent id is asked for before anything is on the stack.
    (directory / "pytorch_model.bin").write_bytes(bytes.fromhex("514b03040000080800000000"))
    with pytest.raises(SourceError, match="without running code"):
        load(directory)


def test_a_bin_file_with_code_is_refused_and_not_run(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (directory / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Bomb()}, directory / "pytorch_model.bin")
    with pytest.raises(SourceError, match="without running code") as refused:
        load(directory)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "exploded").exists()


def test_shards_are_found_by_their_index(directory: Path) -> None:
    expected = tensors_of(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(expected)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i}.safetensors"
        save_file({name: expected[name] for name in part}, directory / file)
        index.update(dict.fromkeys(part, file))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    captured = load(directory)
    assert len(captured.source.weights) == 2
    assert same(tensors_of(directory), expected)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(SourceError, match=r"shard model-1\.safetensors is missing"):
        load(directory)


@pytest.mark.parametrize("file", ["../model-0.safetensors", "/etc/passwd", "model.py", ""])
def test_an_index_cannot_point_outside(directory: Path, file: str) -> None:
    (directory / "model.safetensors").unlink()
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(SourceError, match="no weight file beside the index"):
        load(directory)


def test_weights_are_mapped_and_the_file_is_never_changed(directory: Path) -> None:
    before = (directory / "model.safetensors").read_bytes()
    captured = load(directory)
    name = captured.tensors[0].name
    captured.weights()[name].zero_()
    assert captured.weights()[name].abs().sum() > 0
    assert (directory / "model.safetensors").read_bytes() == before


def test_older_names_are_converted(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, source = saved("bert")
    directory = Path(shutil.copytree(source, tmp_path / "bert"))
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors_of(directory).items()
    }
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert same(tensors_of(directory), tensors_of(source))
    assert capsys.readouterr().err == ""
    assert len(renamed) == len(load(model).tensors)


def test_a_base_model_prefix_may_be_missing(saved: Saved, tmp_path: Path) -> None:
    _, source = saved("gpt2")
    directory = Path(shutil.copytree(source, tmp_path / "gpt2"))
    plain = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in plain.items()}
    assert bare.keys() != plain.keys()
    save_file(bare, directory / "model.safetensors", metadata={"format": "pt"})
    assert same(tensors_of(directory), tensors_of(source))


def test_missing_tensors_are_named(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(SourceError, match=r"1 tensors are missing .*, first model\.norm\.weight"):
        load(directory)


def test_unexpected_tensors_are_left_out_aloud(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(directory, lambda tensors: tensors.update({"pooler.weight": torch.zeros(2)}))
    with caplog.at_level(logging.WARNING, logger="edgesparse"):
        captured = load(directory)
    assert "pooler.weight" not in captured.by_name
    assert "1 stored tensors are not part of LlamaForCausalLM" in caplog.text


def test_another_shape_is_named(directory: Path) -> None:
    rewrite(directory, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(SourceError, match=r"model\.norm\.weight: stored with shape \(31,\)"):
        load(directory)


@pytest.mark.parametrize("length", [0, 7, 8, 500, -1])
def test_a_truncated_file_is_refused(directory: Path, length: int) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(SourceError, match=r"model\.safetensors: .*(too short|truncated)"):
        load(directory)


def test_a_type_we_do_not_know_is_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"F32"', b'"F8_E4M3"', 1)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(SourceError, match=r"has dtype 'F8_E4M3'; known"):
        load(directory)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or directory"):
        load(tmp_path / "absent")
    with pytest.raises(SourceError, match="no weights; expected"):
        load(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match="a file of unknown kind"):
        load(tmp_path / "model.bin")


def test_a_directory_without_configuration(directory: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json"):
        load(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["NoSuchModel"]}, "'NoSuchModel' is not in transformers"),
        ({"architectures": ["pipeline"]}, "'pipeline' is not in transformers"),
        ({"architectures": ["os.system"]}, "'os.system' is not in transformers"),
        ({"architectures": []}, "names no architecture"),
        ({"architectures": None}, "names no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"hidden_size": "many"}, "cannot be built from this configuration"),
        ({"hidden_size": -4}, "cannot be built from this configuration"),
        ({"num_hidden_layers": 10**9}, "more than .* parameters"),
        ({"hidden_size": 2**40}, "stored with shape"),
        ({"vocab_size": 65}, "stored with shape"),
    ],
)
def test_configurations_that_make_no_sense(
    directory: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(directory, **changes)
    with pytest.raises(SourceError, match=message):
        load(directory)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}', "[" * 100_000])
def test_configurations_that_are_no_json(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)
    with pytest.raises(SourceError, match=r"config\.json: (not valid JSON|expected|JSON nested)"):
        load(directory)


def test_a_configuration_cannot_choose_code(directory: Path) -> None:
    edit_config(
        directory,
        auto_map={"AutoModelForCausalLM": "evil.Model"},
        _attn_implementation="someone/kernels",
        attn_implementation="someone/kernels",
    )
    (directory / "evil.py").write_text("raise SystemExit('code of the directory ran')")
    captured = load(directory)
    assert captured.skeleton().config._attn_implementation in ("sdpa", "eager")
    assert not any("evil" in path.name for path in captured.source.files)
    assert "auto_map" not in captured.config


def test_a_configuration_cannot_fetch_anything(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def resolve(host: str, *_: Any, **__: Any) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    edit_config(
        directory,
        architectures=["DPTForDepthEstimation"],
        model_type="dpt",
        backbone="someone/backbone",
        use_timm_backbone=False,
        use_pretrained_backbone=True,
    )
    with pytest.raises(SourceError):
        load(directory)
    assert asked == []
