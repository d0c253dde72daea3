"""Write a cut transformers model as a model directory, where its configuration can say it.

The configuration is changed only as far as needed: sizes that differ between the architecture as
configured and the module as it is are looked for among the configuration's own integers, and the
architecture built from the changed configuration must have exactly the module's shapes.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesparse.errors import UsageError
from edgesparse.model import CapturedModel
from edgesparse.store.atomic import new_directory

Shapes = Mapping[str, tuple[int, ...]]


def write_model(captured: CapturedModel, path: str | Path) -> Path:
    """Write a cut model as a Hugging Face directory that ``edgesparse.load`` reads.

    Args:
        captured: What ``prune_structured`` returned for a transformers model.
        path: Directory to write; nothing may be there.

    Raises:
        UsageError: No transformers model, or one whose configuration has no word for its shapes,
            as when layers differ in size.
        OutputExists: Something is at ``path``.
    """
    module: Any = captured.loader()
    if not hasattr(module, "save_pretrained") or not hasattr(module, "config"):
        raise UsageError(
            f"{captured.name} is no transformers model; keep the module, or export it with "
            "torch.export.save"
        )
    module.config = fitting_config(module)
    with new_directory(Path(path), force=False, replaceable=lambda _: False) as directory:
        module.save_pretrained(directory)
        for file in captured.source.files:
            if not (directory / file.name).exists():
                shutil.copy(file, directory)
    return Path(path)


def fitting_config(module: Any) -> Any:
    """Return the configuration whose architecture has the module's shapes.

    Raises:
        UsageError: There is none that differs in integers alone.
    """
    wanted = _shapes(module)
    config = copy.deepcopy(module.config)
    for old, new in sorted(_changes(_shapes(_build(module, config)), wanted)):
        for key, value in config.to_dict().items():
            if value != old or isinstance(value, bool):
                continue
            tried = copy.deepcopy(config)
            setattr(tried, key, new)
            if _distance(_build(module, tried), wanted) < _distance(_build(module, config), wanted):
                config = tried
                break
    if _distance(_build(module, config), wanted):
        raise UsageError(
            f"{type(module).__name__}: its configuration cannot say the shapes it has now; cut "
            "every layer to the same size, or keep the module"
        )
    return config


def _build(module: nn.Module, config: Any) -> nn.Module | None:
    """Return the architecture on the meta device, None when the sizes contradict each other."""
    try:
        with torch.device("meta"):
            built: nn.Module = type(module)(config)
    except (ValueError, RuntimeError, ZeroDivisionError):
        return None
    return built


def _shapes(module: nn.Module | None) -> Shapes:
    if module is None:
        return {}
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _changes(before: Shapes, after: Shapes) -> set[tuple[int, int]]:
    """Return every (old, new) size of a dimension."""
    return {
        (old, new)
        for name in before.keys() & after.keys()
        for old, new in zip(before[name], after[name], strict=True)
        if old != new
    }


def _distance(module: nn.Module | None, wanted: Shapes) -> int:
    """Return how many tensors have another shape than wanted."""
    found = _shapes(module)
    return sum(found.get(name) != shape for name, shape in wanted.items())
