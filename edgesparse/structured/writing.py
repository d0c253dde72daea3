"""Write a cut transformers model as a model directory, where its configuration can say it.

The configuration is changed only as far as needed: sizes that differ between the architecture as
configured and the module as it is are looked for among the configuration's own integers, and the
architecture built from the changed configuration must have exactly the module's shapes and compute
what the module computes.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgesparse.calibrate.record import first_float_dtype
from edgesparse.capture.conform import Conformed, conform
from edgesparse.errors import OutputExists, UsageError
from edgesparse.model import CapturedModel
from edgesparse.runtime.forward import first_tensor
from edgesparse.store.atomic import new_directory
from edgesparse.structured.experts import TOP_K

Shapes = Mapping[str, tuple[int, ...]]
_ATTEMPTS = 6
_TOLERANCE = 1e-2


def write_model(captured: CapturedModel, path: str | Path, *, force: bool = False) -> Path:
    """Write a cut model as a Hugging Face directory that ``edgesparse.load`` reads.

    Args:
        captured: What ``prune_structured`` returned for a transformers model.
        path: Directory to write.
        force: Replace a model directory that is there already.

    Raises:
        UsageError: No transformers model, or one whose configuration has no word for its shapes,
            as when layers differ in size.
        OutputExists: Something is at ``path``, and ``force`` is not set or it is no model.
    """
    module = captured.loader()
    config = fitting_config(module, captured.example_inputs)
    config.architectures = [type(module).__name__]
    config.dtype = first_float_dtype(module)
    original = conform(_architecture(module, config))
    with new_directory(Path(path), force=force, replaceable=_is_model) as directory:
        save_file(
            _as_stored(module, original), directory / "model.safetensors", metadata={"format": "pt"}
        )
        config.save_pretrained(directory)
        for file in captured.source.files:
            if not (directory / file.name).exists():
                shutil.copy(file, directory)
    return Path(path)


def write_either(captured: CapturedModel, path: Path, *, force: bool = False) -> Path:
    """Write a transformers model as a directory, any other as ``path`` with ``.pt2``.

    Returns:
        What was written; ``edgesparse.load`` reads it.

    Raises:
        OutputExists, UsageError: As for ``write_model`` and ``write_program``.
    """
    if hasattr(captured.skeleton(), "config"):
        return write_model(captured, path, force=force)
    return write_program(captured, path.with_name(f"{path.name}.pt2"), force=force)


def write_program(captured: CapturedModel, path: Path, *, force: bool = False) -> Path:
    """Write a cut model as a ``.pt2`` file that ``edgesparse.load`` reads.

    Args:
        captured: What ``prune_structured`` returned.
        path: File to write.
        force: Replace what is there.

    Raises:
        OutputExists: Something is at ``path``, and ``force`` is not set.
        UsageError: The model cannot be traced.
    """
    if path.exists() and not force:
        raise OutputExists(f"{path} exists; --force replaces it")
    module = captured.loader()
    try:
        with torch.no_grad():
            program = torch.export.export(module, (), dict(captured.example_inputs), strict=False)
    except Exception as error:  # whatever a stranger's forward raises while it is traced
        raise UsageError(f"{captured.name} cannot be traced: {error}") from error
    with TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder:
        torch.export.save(program, Path(folder) / path.name)
        (Path(folder) / path.name).replace(path)
    return path


def fitting_config(module: Any, inputs: Mapping[str, Any]) -> Any:
    """Return the configuration whose architecture has the module's shapes and computes the same.

    Args:
        module: A conformed transformers module with its weights.
        inputs: Keyword arguments of a forward pass to compare on: heads of half the width have the
            shapes of half the heads.

    Raises:
        UsageError: No transformers model, or there is none that differs in integers alone.
    """
    if not hasattr(module, "config") or not hasattr(module.config, "save_pretrained"):
        raise UsageError(
            f"{type(module).__name__} is no transformers model; keep the module, or export it with "
            "torch.export.save"
        )
    wrong = {"head_dim"}  # heads go whole: no cut changes their width
    for _ in range(_ATTEMPTS):
        config, changed = _with_shapes(module, frozenset(wrong))
        if config is None:
            break
        _set_top_k(module, config)
        if _computes_the_same(module, config, inputs):
            return config
        wrong |= changed
    raise UsageError(
        f"{type(module).__name__}: its configuration cannot say the shapes it has now; cut every "
        "layer to the same size, or keep the module"
    )


def _with_shapes(module: Any, without: frozenset[str]) -> tuple[Any, set[str]]:
    """Return a configuration with the module's shapes, or None, and what the first step changed.

    Args:
        module: The module.
        without: Keys that are not tried first.
    """
    config, wanted = copy.deepcopy(module.config), _sizes(module)
    if getattr(config, "head_dim", 0) is None:  # else it would follow the width
        config.head_dim = config.hidden_size // config.num_attention_heads
    distance = _distance(_build(module, config), wanted)
    first: set[str] = set()
    while distance:
        changes = _changes(_sizes(_build(module, config)), wanted)
        found = _best(module, _tried(config, changes, without), wanted, distance)
        found = found or _best(module, _scaled(config, changes, without), wanted, distance)
        if found is None:
            return None, first
        before, (config, distance) = config.to_dict(), found
        after = config.to_dict()
        first = first or {key for key in after if after[key] != before.get(key)}
    return config, first


def _computes_the_same(module: nn.Module, config: Any, inputs: Mapping[str, Any]) -> bool:
    built = type(module)(copy.deepcopy(config)).eval()
    conform(built)
    built.load_state_dict(module.state_dict(), assign=True)
    with torch.no_grad():
        expected, found = first_tensor(module(**inputs)), first_tensor(built(**inputs))
    error = (found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
    return float(error) < _TOLERANCE


def _best(
    module: Any, configs: Iterator[Any], wanted: Shapes, below: int
) -> tuple[Any, int] | None:
    """Return the configuration nearest to the shapes wanted, if nearer than ``below``."""
    best = None
    for tried in configs:
        distance = _distance(_build(module, tried), wanted)
        if distance < below:
            best, below = (tried, distance), distance
    return best


def _tried(config: Any, changes: set[tuple[int, int]], without: frozenset[str]) -> Iterator[Any]:
    """Yield the configurations in which an integer that is a changed size has its new value."""
    for old, new in sorted(changes):
        for key, value in config.to_dict().items():
            if type(value) is int and value == old and key not in without:
                yield _changed(config, key, old, new)


def _scaled(config: Any, changes: set[tuple[int, int]], without: frozenset[str]) -> Iterator[Any]:
    """Yield those in which an integer changes by the ratio of a size: heads of a fixed width."""
    for old, new in sorted(changes):
        for key, value in config.to_dict().items():
            whole = type(value) is int and value > 1 and value * new % old == 0
            if whole and key not in without:
                yield _changed(config, key, value, value * new // old)


def _changed(config: Any, key: str, old: int, new: int) -> Any:
    """Return a copy with one integer changed; lists with an entry for each become shorter."""
    changed = copy.deepcopy(config)
    setattr(changed, key, new)
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == old and len(set(map(str, value))) == 1:
            setattr(changed, name, value[:new])
    return changed


def _set_top_k(module: nn.Module, config: Any) -> None:
    """Say to how many experts a token is sent, where the routers say the same."""
    found = {
        vars(child)[name]
        for child in module.modules()
        for name in TOP_K & vars(child).keys()
        if type(vars(child)[name]) is int
    }
    for key in TOP_K & config.to_dict().keys():
        if len(found) == 1 and key.startswith(("num_experts_per", "moe_topk", "moe_top_k")):
            setattr(config, key, *found)


def _architecture(module: nn.Module, config: Any) -> nn.Module:
    """Return the architecture as its class builds it, on the meta device."""
    with torch.device("meta"):
        built: nn.Module = type(module)(copy.deepcopy(config))
    return built


def _build(module: nn.Module, config: Any) -> nn.Module | None:
    """Return the conformed architecture, None when the sizes contradict each other."""
    try:
        built = _architecture(module, config)
    except (ValueError, RuntimeError, ZeroDivisionError, TypeError, IndexError, KeyError):
        return None
    conform(built)
    return built


def _sizes(module: nn.Module | None) -> Shapes:
    """Return the shape of every tensor, and the length of every list of modules."""
    if module is None:
        return {}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    lists = {p: (len(m),) for p, m in module.named_modules() if isinstance(m, nn.ModuleList)}
    return {**shapes, **lists}


def _changes(before: Shapes, after: Shapes) -> set[tuple[int, int]]:
    """Return every (old, new) size of a dimension."""
    return {
        (old, new)
        for name in before.keys() & after.keys()
        for old, new in zip(before[name], after[name], strict=True)
        if old != new
    }


def _distance(module: nn.Module | None, wanted: Shapes) -> int:
    """Return how many tensors are missing, too many, or of another shape than wanted."""
    found = _sizes(module)
    return sum(found.get(name) != wanted.get(name) for name in found.keys() | wanted.keys())


def _as_stored(module: nn.Module, original: Conformed) -> dict[str, Tensor]:
    """Return the tensors as the class itself has them; of tied ones the first."""
    stacks: dict[str, dict[int, Tensor]] = {}
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        own = tensor.detach().t() if name in original.transposed else tensor.detach()
        if name in original.parts:
            stack, index = original.parts[name]
            stacks.setdefault(stack, {})[index] = own
        else:
            stored[name] = own.contiguous()
    for stack, parts in stacks.items():
        stored[stack] = torch.stack([parts[index] for index in sorted(parts)])
    return stored


def _is_model(path: Path) -> bool:
    return path.is_dir() and ((path / "config.json").is_file() or not any(path.iterdir()))
