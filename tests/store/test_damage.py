"""Packs that were damaged, or written by somebody who means harm."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesparse.errors import CorruptPack, EdgesparseError, FormatError, SourceError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.store import load, save
from edgesparse.store.tensorfile import TensorFile, write_tensor_file

Path_ = tuple[str | int, ...]


@pytest.fixture
def pack(compressed: CompressedModel, tmp_path: Path) -> Path:
    return save(compressed, tmp_path / "pack")


def edit(pack: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest."""
    manifest = json.loads((pack / "edgesparse.json").read_bytes())
    change(manifest)
    (pack / "edgesparse.json").write_text(json.dumps(manifest))


def rehash(pack: Path) -> None:
    """Make the manifest's sizes and digests those of the files, as an attacker would."""

    def change(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            content = (pack / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"nbytes": len(content), "sha256": digest}

    edit(pack, change)


def rewrite_weights(pack: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors in the file, with everything that vouches for them."""
    file = TensorFile(pack / "weights.safetensors")
    tensors = {name: file.array(name).copy() for name in file.entries}
    change(tensors)
    (pack / "weights.safetensors").unlink()
    write_tensor_file(pack / "weights.safetensors", tensors)
    rehash(pack)


def paths(value: Any, prefix: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*prefix, key)
        if isinstance(item, (dict, list)):
            yield from paths(item, (*prefix, key))


@pytest.mark.parametrize("name", ["edgesparse.json", "weights.safetensors"])
@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_truncation_is_seen(pack: Path, small: CapturedModel, name: str, length: int) -> None:
    content = (pack / name).read_bytes()
    (pack / name).write_bytes(content[:length])
    with pytest.raises(CorruptPack):
        load(pack, source=small)


def test_any_changed_byte_of_the_weights_is_seen(pack: Path, small: CapturedModel) -> None:
    content = (pack / "weights.safetensors").read_bytes()
    for place in random.Random(0).sample(range(len(content)), 50):
        changed = bytearray(content)
        changed[place] ^= 1
        (pack / "weights.safetensors").write_bytes(changed)
        with pytest.raises(CorruptPack):
            load(pack, source=small)


def test_missing_files_are_named(pack: Path, small: CapturedModel, tmp_path: Path) -> None:
    (pack / "weights.safetensors").unlink()
    with pytest.raises(CorruptPack, match=r"cannot read .*weights\.safetensors: No such file"):
        load(pack, source=small)
    (pack / "edgesparse.json").unlink()
    with pytest.raises(SourceError, match=r"no edgesparse\.json"):
        load(pack)
    with pytest.raises(SourceError, match="no such directory"):
        load(tmp_path / "absent")


def test_links_and_devices_are_not_followed(
    pack: Path, small: CapturedModel, tmp_path: Path
) -> None:
    weights = pack / "weights.safetensors"
    moved = Path(shutil.move(weights, tmp_path / "elsewhere"))
    weights.symlink_to(moved)
    with pytest.raises(CorruptPack, match="not a regular file; links are not followed"):
        load(pack, source=small)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(CorruptPack, match="not a regular file"):
        load(pack, source=small)
    (pack / "edgesparse.json").rename(tmp_path / "manifest")
    (pack / "edgesparse.json").symlink_to(tmp_path / "manifest")
    with pytest.raises(CorruptPack, match="not a regular file"):
        load(pack, source=small)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b", "edgesparse.json"]
)
def test_file_names_cannot_leave_the_directory(pack: Path, small: CapturedModel, name: str) -> None:
    (pack.parent / "secret").write_bytes(b"")
    record = {"nbytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit(pack, lambda manifest: manifest["files"].update({name: record}))
    with pytest.raises(CorruptPack, match="is not the name of a file of the pack"):
        load(pack, source=small)


def test_a_newer_format_says_what_reads_it(pack: Path) -> None:
    edit(pack, lambda manifest: manifest.update(format_version=3, readable_by="0.7.0"))
    with pytest.raises(FormatError, match=r"format 3, .* needs edgesparse '0\.7\.0' or newer"):
        load(pack)


def test_a_manifest_never_causes_an_import(pack: Path) -> None:
    edit(pack, lambda manifest: manifest["source"].update(kind="reference", location="this:d"))
    with pytest.raises(SourceError, match="code is never imported unasked"):
        load(pack)


def test_an_unknown_format_is_named(pack: Path, small: CapturedModel) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["tensors"][0]["packed"]["spec"]["name"] = "zip4"

    edit(pack, change)
    with pytest.raises(FormatError, match="unknown format 'zip4'; known"):
        load(pack, source=small)


WRONG = (None, True, -1, 2**80, 1.5, "", "x", [], {}, [1], {"x": 1}, [[]], "\0", 1e308, 3)


def test_no_value_of_the_manifest_is_believed_unchecked(pack: Path, small: CapturedModel) -> None:
    """Put every kind of wrong value in every place: an error of ours or a model, never a crash."""
    original = (pack / "edgesparse.json").read_bytes()
    manifest = json.loads(original)
    refused = 0
    for i, path in enumerate(paths(manifest)):
        for wrong in (WRONG[i % len(WRONG)], WRONG[(7 * i + 3) % len(WRONG)]):
            changed = json.loads(original)
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            (pack / "edgesparse.json").write_text(json.dumps(changed))
            try:
                load(pack, source=small)
            except EdgesparseError:
                refused += 1
    assert refused > 200


def test_a_number_no_float_can_hold_is_refused(pack: Path, small: CapturedModel) -> None:
    def change(manifest: dict[str, Any]) -> None:
        tensor = next(t for t in manifest["tensors"] if t["packed"])
        tensor["packed"]["spec"]["pattern"] = {"sparsity": 10**400, "block": [1, 1]}

    edit(pack, change)
    with pytest.raises(CorruptPack, match="more than 40 digits"):
        load(pack, source=small)


def test_tensors_that_are_missing_or_too_many_are_seen(
    pack: Path, compressed: CompressedModel, small: CapturedModel
) -> None:
    kept, packed = next(iter(compressed.kept)), next(iter(compressed.packed))
    rewrite_weights(pack, lambda tensors: tensors.update(extra=tensors[kept]))
    with pytest.raises(CorruptPack, match="'extra' belongs to no tensor"):
        load(pack, source=small)
    rewrite_weights(pack, lambda tensors: tensors.pop("extra"))
    load(pack, source=small)
    rewrite_weights(pack, lambda tensors: tensors.pop(f"{packed}.codes"))
    with pytest.raises(CorruptPack, match=rf"buffer '{packed}\.codes' is missing"):
        load(pack, source=small)
    rewrite_weights(pack, lambda tensors: tensors.pop(kept))
    with pytest.raises(CorruptPack):
        load(pack, source=small)


def test_buffers_that_lie_with_a_right_hash_are_seen(
    pack: Path, compressed: CompressedModel, small: CapturedModel
) -> None:
    name = next(n for n, packed in compressed.packed.items() if "mask" in packed.buffers)

    def more_codes_than_stored(tensors: dict[str, Any]) -> None:
        tensors[f"{name}.mask"][:] = 2**64 - 1

    rewrite_weights(pack, more_codes_than_stored)
    with pytest.raises(CorruptPack, match=name):
        load(pack, source=small)


def test_a_shape_that_lies_is_seen(pack: Path, small: CapturedModel) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["tensors"][0]["shape"][0] *= 2

    edit(pack, change)
    with pytest.raises(CorruptPack):
        load(pack, source=small)


def test_a_manifest_without_end_is_not_read(pack: Path) -> None:
    with (pack / "edgesparse.json").open("r+b") as file:
        file.truncate(10**10)  # sparse: takes no space
    with pytest.raises(CorruptPack, match="more than any manifest"):
        load(pack)
