"""The weight files of a model directory, mapped and read tensor by tensor.

In order of preference: ``model.safetensors``, its shards by ``model.safetensors.index.json``,
``pytorch_model.bin``, its shards. A ``.bin`` is a pickle: it is read with ``weights_only=True``,
which builds tensors and nothing else.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - only the name of the error torch.load raises
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch

from edgesparse.capture.describe import tensor_dtype
from edgesparse.errors import CorruptPack, SourceError
from edgesparse.store.strict_json import parse_object
from edgesparse.store.tensorfile import TensorFile

_MAX_INDEX_NBYTES = 1 << 26


class _Stored(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


class Checkpoint(Mapping[str, torch.Tensor]):
    """All tensors of a model directory under the names the files give them.

    Opening reads headers only. A tensor is mapped copy-on-write: its holder may change it.

    Args:
        directory: The model directory.

    Attributes:
        files: The weight files, in order.

    Raises:
        SourceError: No weights, or files that are damaged or contradict their index.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = _weight_files(directory)

    @cached_property
    def _stored(self) -> dict[str, _Stored]:
        stored: dict[str, _Stored] = {}
        for path in self.files:
            opened = _open_safetensors(path) if path.suffix == ".safetensors" else _open_bin(path)
            for name in opened:
                if name in stored:
                    raise SourceError(f"{path}: {name!r} is in another shard as well; damaged")
            stored.update(opened)
        return stored

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def dtype(self, name: str) -> torch.dtype:
        """Return the stored type of a tensor, without reading it."""
        dtype = getattr(torch, self._stored[name].dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return self._stored[name].shape


def _weight_files(directory: Path) -> tuple[Path, ...]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (directory / single).is_file():
            return (directory / single,)
        index = directory / f"{single}.index.json"
        if index.is_file():
            return _shards(index)
    raise SourceError(
        f"{directory}: no weights; expected model.safetensors, pytorch_model.bin or an index of "
        "their shards"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the files an index names, all beside it."""
    if index.stat().st_size > _MAX_INDEX_NBYTES:
        raise SourceError(f"{index}: larger than any index of shards; damaged")
    try:
        mapping = parse_object(index.read_bytes(), str(index)).get("weight_map")
    except CorruptPack as error:
        raise SourceError(str(error)) from None
    if not isinstance(mapping, dict) or not mapping:
        raise SourceError(f"{index}: no weight_map; expected tensor names with their files")
    files = []
    for name in sorted({str(value) for value in mapping.values()}):
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise SourceError(f"{index}: {name!r} is no weight file beside the index")
        if not (index.parent / name).is_file():
            raise SourceError(f"{index.parent}: shard {name} is missing; download it again")
        files.append(index.parent / name)
    return tuple(files)


def _open_safetensors(path: Path) -> dict[str, _Stored]:
    try:
        file = TensorFile(path)
    except CorruptPack as error:
        raise SourceError(str(error)) from None
    return {
        name: _Stored(entry.dtype, entry.shape, partial(file.tensor, name))
        for name, entry in file.entries.items()
    }


def _open_bin(path: Path) -> dict[str, _Stored]:
    state = _load_bin(path)
    if not isinstance(state, dict):
        raise SourceError(f"{path}: holds {type(state).__name__}, expected tensors by name")
    stored = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise SourceError(f"{path}: {name!r} is no tensor; expected tensors by name")
        stored[name] = _Stored(tensor_dtype(name, value), tuple(value.shape), value.clone)
    return stored


def _load_bin(path: Path) -> object:
    """Read a ``.bin``, mapped when it has torch's zip layout, else (old files) into memory."""
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own words recommend to read it with weights_only=False: exactly what must not be.
        raise SourceError(
            f"{path}: not tensors that can be read without running code; expected a state dict of "
            "tensors, better in model.safetensors"
        ) from None
    except Exception as error:  # of damaged pickles torch's reader falls over its own stack
        first_line = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"{path}: not tensors that can be read without running code: {first_line}"
        ) from None
