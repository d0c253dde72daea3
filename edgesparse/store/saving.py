"""Write a compressed model as a directory."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import edgesparse
from edgesparse.errors import FormatError, SourceError
from edgesparse.model import CapturedModel, CompressedModel, TensorInfo
from edgesparse.store.atomic import flush_directory, new_directory
from edgesparse.store.deflating import Deflated, deflate
from edgesparse.store.layout import buffer_name, safetensors_nbytes
from edgesparse.store.manifest import MANIFEST, WEIGHTS, FileRecord, write_manifest
from edgesparse.store.space import require_space
from edgesparse.store.tensorfile import entry_of, write_bytes, write_tensor_file

if TYPE_CHECKING:
    import torch

    from edgesparse.store.tensorfile import Storable

_TOOLS = ("torch", "numpy", "transformers")
_SLACK_NBYTES = 1 << 16  # the directory itself and the manifest's last digits


def save(
    compressed: CompressedModel, path: Path, *, force: bool = False, deflated: bool = False
) -> Path:
    """Write ``compressed`` as the directory ``path``, whole or not at all.

    Args:
        compressed: The model.
        path: The directory; its parents are made.
        force: Replace a compressed model that is there already.
        deflated: Entropy-code masks, codes and scales where that saves bytes: smaller to keep and
            to send, and expanded into memory when it is loaded, not mapped.

    Raises:
        OutputExists: Something is there, and ``force`` is not set or it is no compressed model.
        FormatError: The parts do not belong together, the disk is full or not writable.
        SourceError: A small file of the source cannot be read any more.
    """
    tensors = _tensors(compressed)
    streams = _deflate(compressed, tensors) if deflated else {}
    small_files = _small_files(compressed.captured)
    with new_directory(path, force=force, replaceable=is_compressed_model) as directory:
        require_space(directory.parent, _nbytes(tensors, small_files))
        files = {}
        for name, text in small_files.items():
            files[name] = FileRecord(len(text), write_bytes(directory / name, text))
        digest = write_tensor_file(directory / WEIGHTS, tensors)
        files[WEIGHTS] = FileRecord((directory / WEIGHTS).stat().st_size, digest)
        write_bytes(directory / MANIFEST, write_manifest(compressed, files, _tools(), streams))
        flush_directory(directory)
    return path


def is_compressed_model(path: Path) -> bool:
    """Whether ``path`` is a directory that ``save`` may replace: a compressed model, or empty."""
    return path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


def _tensors(compressed: CompressedModel) -> dict[str, Storable]:
    """Return what goes into the file, by the names it has there."""
    tensors: dict[str, Storable] = {}
    for tensor in compressed.captured.tensors:
        packed, kept = compressed.packed.get(tensor.name), compressed.kept.get(tensor.name)
        if (packed is None) == (kept is None):
            both = "neither packed nor kept" if packed is None else "both packed and kept"
            raise FormatError(f"{tensor.name} is {both}; expected one of them")
        stored: Mapping[str, Storable]
        if packed is not None:
            stored = {buffer_name(tensor.name, b): array for b, array in packed.buffers.items()}
        else:
            assert kept is not None
            stored = {tensor.name: _checked(tensor, kept)}
        if clash := sorted(set(stored) & set(tensors)):
            raise FormatError(f"two tensors would be stored as {clash[0]!r}; rename one")
        tensors.update(stored)
    return tensors


def _deflate(
    compressed: CompressedModel, tensors: dict[str, Storable]
) -> dict[str, dict[str, Deflated]]:
    """Replace packed buffers of ``tensors`` by smaller streams; return what those expand to."""
    found: dict[str, dict[str, Deflated]] = {}
    for name, packed in compressed.packed.items():
        for buffer, array in packed.buffers.items():
            if (stream := deflate(array)) is not None:
                tensors[buffer_name(name, buffer)] = stream
                found.setdefault(name, {})[buffer] = Deflated(str(array.dtype), array.nbytes)
    return found


def _checked(tensor: TensorInfo, kept: torch.Tensor) -> torch.Tensor:
    entry = entry_of(tensor.name, kept)
    if entry.dtype != tensor.dtype or entry.shape != tensor.shape:
        raise FormatError(
            f"{tensor.name}: kept as {entry.dtype} {entry.shape}, described as {tensor.dtype} "
            f"{tensor.shape}"
        )
    return kept


def _small_files(captured: CapturedModel) -> dict[str, bytes]:
    """Return the source's own files by name; a configuration is written where there is no file."""
    files = {}
    for path in captured.source.files:
        try:
            files[path.name] = path.read_bytes()
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror or error}") from None
    if captured.source.kind == "huggingface" and "config.json" not in files:
        files["config.json"] = json.dumps(dict(captured.config), indent=2).encode()
    if clash := {MANIFEST, WEIGHTS} & set(files):
        raise FormatError(f"the source's own {sorted(clash)[0]} would be overwritten; rename it")
    return files


def _nbytes(tensors: Mapping[str, Storable], small_files: Mapping[str, bytes]) -> int:
    """Return the bytes of the whole directory, the manifest's estimated from above."""
    weights = safetensors_nbytes(entry_of(name, value) for name, value in tensors.items())
    manifest = 2000 * len(tensors) + _SLACK_NBYTES
    return weights + manifest + sum(map(len, small_files.values()))


def _tools() -> dict[str, str]:
    versions = {"edgesparse": edgesparse.__version__, "python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
