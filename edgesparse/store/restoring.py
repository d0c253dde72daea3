"""The structure a saved model belongs to: rebuilt from its own files, or given again.

A manifest never causes an import: only a Hugging Face configuration, which names a class of the
installed transformers, is rebuilt without being asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgesparse.errors import CorruptPack, SourceError
from edgesparse.model import CapturedModel, Source
from edgesparse.store.manifest import MANIFEST, WEIGHTS, Manifest

if TYPE_CHECKING:
    import torch


def captured_of(
    directory: Path, manifest: Manifest, given: str | Path | CapturedModel | None
) -> CapturedModel:
    """Return the structure the tensors belong to, described as the manifest does.

    Args:
        directory: Where the manifest is.
        manifest: Checked, and so are the files it lists.
        given: The source, when the user gave it.

    Raises:
        SourceError: ``given`` is needed, or is another model.
        CorruptPack: The configuration in the directory is of another model than the manifest.
    """
    structure = _structure(directory, manifest, given)
    found = {tensor.name: tensor for tensor in structure.tensors}
    for tensor in manifest.tensors:
        other = found.pop(tensor.name, None)
        if other is None or (other.shape, other.aliases) != (tensor.shape, tensor.aliases):
            raise _not_this_model(directory, tensor.name, given)
    if found:
        raise _not_this_model(directory, next(iter(found)), given)
    return CapturedModel(
        source=Source(
            kind=manifest.source_kind,
            location=manifest.source_location,
            files=tuple(directory / name for name in manifest.files if name != WEIGHTS),
            recorded_sha256=manifest.source_sha256,
        ),
        tensors=manifest.tensors,
        example_inputs=structure.example_inputs,
        skeleton=structure.skeleton,
        weights=structure.weights,
        task=structure.task,
        config=structure.config,
    )


def _structure(
    directory: Path, manifest: Manifest, given: str | Path | CapturedModel | None
) -> CapturedModel:
    if isinstance(given, CapturedModel):
        return given
    if given is not None:
        from edgesparse.capture import (
            load as capture,
        )  # here: capture reads files with this package

        return capture(given)
    if manifest.source_kind != "huggingface" or "config.json" not in manifest.files:
        raise SourceError(
            f"{directory}: made from {manifest.source_location!r}, which cannot be rebuilt from "
            "these files, and code is never imported unasked; name it again with --source, in "
            "Python source="
        )
    return _from_config(directory, manifest)


def _from_config(directory: Path, manifest: Manifest) -> CapturedModel:
    import torch

    from edgesparse.capture.architecture import read_architecture
    from edgesparse.capture.huggingface import capture_architecture

    architecture = read_architecture(directory, max_parameters=8 * len(manifest.tensors) + 200)
    return capture_architecture(
        architecture,
        dtypes={tensor.name: getattr(torch, tensor.dtype) for tensor in manifest.tensors},
        source=Source(kind="huggingface", location=str(directory)),
        weights=_original_weights(directory, manifest),
    )


def _original_weights(
    directory: Path, manifest: Manifest
) -> Callable[[], Mapping[str, torch.Tensor]]:
    """Return a way to the weights the model was made from, if they are still where they were."""

    def weights() -> Mapping[str, torch.Tensor]:
        from edgesparse.capture import load as capture

        where = Path(manifest.source_location)
        advice = "pass the original model as source, or as the teacher"
        if not manifest.source_sha256 or not where.is_dir():
            raise SourceError(f"{directory}: the original weights are not at {where}; {advice}")
        original = capture(where)
        if original.source.sha256 != manifest.source_sha256:
            raise SourceError(f"{where}: other weights than {directory} was made from; {advice}")
        return original.weights()

    return weights


def _not_this_model(
    directory: Path, tensor: str, given: str | Path | CapturedModel | None
) -> CorruptPack | SourceError:
    if given is None:
        return CorruptPack(f"{directory}: {tensor!r} differs between config.json and {MANIFEST}")
    return SourceError(
        f"{directory}: {tensor!r} is not the same in the given source; it is another model"
    )
