"""Capture a Hugging Face model: a directory, or a transformers model of this process.

From a directory only ``config.json`` and the headers of the weight files are read; the weights are
mapped when somebody asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesparse.capture.architecture import Architecture, check_buffers, read_architecture
from edgesparse.capture.assemble import place
from edgesparse.capture.checkpoint import Checkpoint
from edgesparse.capture.describe import describe
from edgesparse.capture.directory_weights import DirectoryWeights
from edgesparse.capture.inputs import example_inputs, task_of
from edgesparse.capture.module import capture_module
from edgesparse.model import CapturedModel, Source

_SMALL_FILE = re.compile(
    r".*\.(json|jinja|model)|vocab\.txt|merges\.txt|(LICEN[CS]E|NOTICE)(\..*)?", re.IGNORECASE
)
_MAX_SMALL_NBYTES = 1 << 26


def capture_directory(directory: Path) -> CapturedModel:
    """Capture a model directory without reading its weights.

    Raises:
        SourceError: Anything missing, damaged, unknown or contradictory.
    """
    checkpoint = Checkpoint(directory)
    architecture = read_architecture(directory, max_parameters=8 * len(checkpoint) + 200)
    bare, conformed = architecture.build(device="meta")
    weights = DirectoryWeights(architecture, checkpoint, bare, conformed)
    weights.warn_of_unexpected()
    return capture_architecture(
        architecture,
        dtypes=weights.dtypes,
        source=Source(
            kind="huggingface",
            location=str(directory),
            files=small_files(directory),
            weights=checkpoint.files,
        ),
        # A new mapping each time: what one caller changes, no other sees.
        weights=lambda: DirectoryWeights(architecture, Checkpoint(directory), bare, conformed),
    )


def capture_architecture(
    architecture: Architecture,
    *,
    dtypes: Mapping[str, torch.dtype],
    source: Source,
    weights: Any,
) -> CapturedModel:
    """Return the captured model of an architecture whose weights are elsewhere.

    Args:
        architecture: Class and configuration.
        dtypes: Stored type of tensors by name; others keep the one the class gives them.
        source: Where it came from.
        weights: ``CapturedModel.weights``.
    """

    def skeleton(device: str = "cpu") -> nn.Module:
        module, _ = architecture.build(device=device)
        set_dtypes(module, dtypes)
        return module

    bare = skeleton("meta")
    check_buffers(bare)
    return CapturedModel(
        source=source,
        tensors=describe(bare),
        example_inputs=example_inputs(bare),
        skeleton=skeleton,
        weights=weights,
        task=task_of(bare),
        config=architecture.config,
    )


def capture_transformers_model(model: Any) -> CapturedModel:
    """Capture a transformers model of this process; it is neither changed nor run."""
    captured = capture_module(model, example_inputs(model), probe=False)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    own = type(model).__module__.startswith("transformers.")
    location = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return CapturedModel(
        source=Source(kind="huggingface" if own else "module", location=str(location)),
        tensors=captured.tensors,
        example_inputs=captured.example_inputs,
        skeleton=captured.skeleton,
        weights=captured.weights,
        task=task_of(model),
        config=config,
    )


def small_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that travel with a model: configuration, tokenizer, licence; no code."""
    return tuple(
        path
        for path in sorted(directory.iterdir())
        if _SMALL_FILE.fullmatch(path.name)
        and not path.name.endswith(".index.json")
        and path.is_file()
        and path.stat().st_size <= _MAX_SMALL_NBYTES
    )


def set_dtypes(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give the tensors of a skeleton their stored types; ties are kept."""
    names: dict[int, list[str]] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for group in names.values():
        tensor = state[group[0]]
        dtype = next((dtypes[name] for name in group if name in dtypes), tensor.dtype)
        if dtype != tensor.dtype:
            place(module, tuple(group), tensor.detach().to(dtype))
