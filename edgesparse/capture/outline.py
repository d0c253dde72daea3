"""What a model directory says of itself without torch: the tensors in its files' headers.

Enough to see that a budget is hopeless before seconds are spent on importing torch and the model's
class. Only directories are outlined whose every tensor has a name known from the Llama family
(Mistral, Qwen, Gemma, Mixtral and their like): then the outline has the shapes that the captured
model has. About every other source nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesparse.errors import CorruptPack
from edgesparse.model import CapturedModel, Source, TensorInfo, TensorKind
from edgesparse.store.layout import Entry
from edgesparse.store.strict_json import parse_object
from edgesparse.store.tensorfile import TensorFile

_EMBEDDING = re.compile(r"model\.embed_tokens\.weight")
_HEAD = re.compile(r"lm_head\.weight")
_LINEAR = re.compile(
    r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
)
_EXPERT = re.compile(
    r"(?P<layer>model\.layers\.\d+)\.(mlp|block_sparse_moe)\.experts\.(?P<index>\d+)"
    r"\.(?P<part>w[123]|(gate|up|down)_proj)\.weight"
)
_NORM = re.compile(r"model\.(layers\.\d+\.(\w+layernorm|self_attn\.[qk]_norm)|norm)\.weight")
_ROUTER = re.compile(r"(?P<layer>model\.layers\.\d+)\.(mlp|block_sparse_moe)\.gate\.weight")
_BIAS = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.bias")
_PARTS = {"w1": "gate_up_proj", "gate_proj": "gate_up_proj", "w3": "gate_up_proj",
          "up_proj": "gate_up_proj", "w2": "down_proj", "down_proj": "down_proj"}  # fmt: skip
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_MAX_CONFIG_NBYTES = 1 << 24


def outline(directory: Path) -> CapturedModel | None:
    """Return the tensors of a model directory, or None where they cannot be known so easily.

    Args:
        directory: Any path; None is the answer for all but model directories.

    Returns:
        A captured model for planning alone: it has no skeleton, no inputs and no weights.
    """
    try:
        config = parse_object(_small_file(directory / "config.json"), "config.json")
        entries = {e.name: e for path in _files(directory) for e in _entries(path)}
    except (CorruptPack, OSError):  # capture says what is wrong with it
        return None
    tensors = _tensors(entries, config)
    if not tensors:
        return None
    return CapturedModel(
        source=Source(kind="huggingface", location=str(directory)),
        tensors=tensors,
        example_inputs={},
        skeleton=_nothing,
        weights=_nothing,
        config=config,
    )


def _tensors(entries: Mapping[str, Entry], config: Mapping[str, Any]) -> tuple[TensorInfo, ...]:
    """Return what the captured model has, () where a name or number is not of the family."""
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    layers = {int(match[1]) for name in entries if (match := _LAYER.match(name))}
    count = config.get("num_hidden_layers")
    tied = config.get("tie_word_embeddings", None if "lm_head.weight" in entries else True)
    whole = type(count) is int and layers == set(range(count)) and isinstance(tied, bool)
    if not (architecture.endswith("ForCausalLM") and whole):
        return ()
    found: dict[str, TensorInfo] = {}
    for entry in entries.values():
        info = _info(entry, tied=bool(tied))
        if info is None:
            return ()
        if tied and _HEAD.fullmatch(entry.name):
            continue
        first = found.get(info.name)
        if first is not None:  # both halves of a gated expert are one matrix
            rows = first.shape[0] + info.shape[0]
            info = TensorInfo(**{**vars(first), "shape": (rows, *first.shape[1:])})
        found[info.name] = info
    return tuple(found.values())


def _info(entry: Entry, *, tied: bool) -> TensorInfo | None:
    """Return what a stored tensor becomes, None for a name that is not known."""
    name, matrix = entry.name, len(entry.shape) == 2
    if _EMBEDDING.fullmatch(name) and matrix:
        aliases = ("lm_head.weight",) if tied else ()
        return _compressible(entry, name, TensorKind.EMBEDDING, aliases)
    if (_LINEAR.fullmatch(name) or _HEAD.fullmatch(name)) and matrix:
        return _compressible(entry, name, TensorKind.LINEAR)
    if (match := _EXPERT.fullmatch(name)) and matrix:
        own = f"{match['layer']}.mlp.experts.{_PARTS[match['part']]}.{match['index']}.weight"
        return _compressible(entry, own, TensorKind.EXPERT)
    if match := _ROUTER.fullmatch(name):
        name = f"{match['layer']}.mlp.gate.weight"
        return TensorInfo(name=name, kind=TensorKind.OTHER, shape=entry.shape, dtype=entry.dtype)
    kind = TensorKind.NORM if _NORM.fullmatch(name) else TensorKind.OTHER
    if kind is TensorKind.NORM or _BIAS.fullmatch(name):
        return TensorInfo(name=name, kind=kind, shape=entry.shape, dtype=entry.dtype)
    return None


def _compressible(
    entry: Entry, name: str, kind: TensorKind, aliases: tuple[str, ...] = ()
) -> TensorInfo:
    return TensorInfo(
        name=name, kind=kind, shape=entry.shape, dtype=entry.dtype, aliases=aliases,
        compressible=True,
    )  # fmt: skip


def _files(directory: Path) -> Iterator[Path]:
    """Yield the safetensors files of a directory."""
    single = directory / "model.safetensors"
    if single.is_file():
        yield single
        return
    index = directory / "model.safetensors.index.json"
    mapping = parse_object(_small_file(index), index.name).get("weight_map")
    for name in sorted(set(map(str, mapping.values())) if isinstance(mapping, dict) else ()):
        if Path(name).name == name:
            yield directory / name


def _entries(path: Path) -> Iterable[Entry]:
    return TensorFile(path).entries.values()


def _small_file(path: Path) -> bytes:
    if path.stat().st_size > _MAX_CONFIG_NBYTES:
        raise CorruptPack(f"{path} is larger than any configuration")
    return path.read_bytes()


def _nothing(*_: object) -> Any:
    raise AssertionError("an outline has sizes only")
