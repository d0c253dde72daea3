"""Open what a user names: a model to compress, or a compressed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesparse.model import CapturedModel, CompressedModel

MANIFEST = "edgesparse.json"


def is_compressed(model: str) -> bool:
    """Whether ``model`` is a directory that ``compress`` wrote."""
    return (Path(model) / MANIFEST).is_file()


def is_artifact(model: str) -> bool:
    """Whether ``model`` is named like a file that ``export`` writes."""
    from edgesparse.exporting import suffixes

    return bool(Path(model).suffix) and Path(model).suffix in suffixes()


def open_compressed(model: str | Path, source: str | None) -> CompressedModel:
    """Read a compressed model, every file checked against its hash.

    Raises:
        SourceError: Nothing there, or a model that was never compressed.
    """
    from edgesparse.errors import SourceError
    from edgesparse.exporting import require_exists
    from edgesparse.model import CompressedModel

    require_exists(Path(model))
    if not is_compressed(str(model)):
        raise SourceError(
            f"{model} is no compressed model: it has no {MANIFEST}; make one with "
            f"'edgesparse compress {model} -o …'"
        )
    return CompressedModel.load(model, source=source)


def open_model(model: str, source: str | None) -> CapturedModel | CompressedModel:
    """Open either kind."""
    if is_compressed(model):
        return open_compressed(model, source)
    from edgesparse.capture import load

    return load(model)
