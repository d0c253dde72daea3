"""A package on disk (``.mlpackage``), read without coremltools.

    X.mlpackage/Manifest.json                                 which entry is the model
    X.mlpackage/Data/com.apple.CoreML/model.mlmodel           the program
    X.mlpackage/Data/com.apple.CoreML/weights/weight.bin      the constants

Nothing outside the package is read, whatever the manifest or the program says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse_converters.coreml.blob import BlobFile
from edgesparse_converters.coreml.parsing import known, parse
from edgesparse_converters.coreml.program import BlobValue, Constant, Program
from edgesparse_converters.coreml.wire import WireError

MODEL_PATH = "@model_path/"
MAX_MODEL_BYTES = 1 << 31


class Package:
    """One package.

    Args:
        path: The ``.mlpackage`` directory.

    Raises:
        SourceError: Not a package, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model_path = _model_path(path)
        self._blobs: dict[str, BlobFile] = {}

    @cached_property
    def program(self) -> Program:
        """The program.

        Raises:
            SourceError: The model file is not an ML Program, or damaged.
        """
        try:
            data = self.model_path.read_bytes()
            return parse(memoryview(data))
        except OSError as error:
            raise SourceError(f"{self.model_path}: {error.strerror}") from None
        except (WireError, RecursionError, OverflowError) as error:
            raise SourceError(
                f"{self.model_path}: not a readable Core ML program: {error}"
            ) from None

    @property
    def metadata(self) -> Mapping[str, str]:
        """What whoever wrote the package left in it, as text."""
        return self.program.metadata

    def constant(self, value: Constant) -> Any:
        """Return a constant's value, from the weight file if it is there.

        Raises:
            SourceError: The weight file does not hold it.
        """
        if isinstance(value, list):
            return [self.constant(item) for item in value]
        return self.blob(value) if isinstance(value, BlobValue) else value

    def blob(self, value: BlobValue) -> NDArray[np.generic]:
        """Return a constant of the weight file, a view of the mapped file where it can be."""
        try:
            shape = known(value.type.shape)
        except WireError as error:
            raise SourceError(f"{self.path}: {error}") from None
        return self.blob_file(value).read(value.offset, value.type.dtype, shape)

    def blob_file(self, value: BlobValue) -> BlobFile:
        """Return the weight file a constant is in; errors are those of ``weight_file``."""
        return self.weight_file(value.file)

    def weight_file(self, name: str) -> BlobFile:
        """Return a weight file by the name the program has for it.

        Raises:
            SourceError: It is not inside the package.
        """
        if name not in self._blobs:
            target = _inside(self.model_path.parent, name.removeprefix(MODEL_PATH))
            if not name.startswith(MODEL_PATH) or target is None:
                raise SourceError(f"{self.path}: weights in {name[:80]!r}, outside the package")
            self._blobs[name] = BlobFile(target)
        return self._blobs[name]


def _model_path(path: Path) -> Path:
    """Return the model file the manifest names."""
    manifest, root = path / "Manifest.json", path.resolve()
    try:
        if _inside(root, manifest.name) is None and manifest.is_file():
            raise SourceError(f"{manifest}: leads out of the package")
        data = json.loads(manifest.read_text(encoding="utf-8"))
        entry = data["itemInfoEntries"][data["rootModelIdentifier"]]
        model = _inside(root / "Data", str(entry["path"]))
    except OSError as error:
        raise SourceError(f"{manifest}: {error.strerror}; not a Core ML package") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SourceError(f"{manifest}: names no model; not a Core ML package") from None
    if model is None:
        raise SourceError(f"{path}: the model {str(entry['path'])[:80]!r} is not in the package")
    if model.stat().st_size > MAX_MODEL_BYTES:
        raise SourceError(f"{model}: larger than {MAX_MODEL_BYTES} bytes")
    return model


def _inside(root: Path, name: str) -> Path | None:
    """Return the file ``name`` of a folder; None if there is none, or it is elsewhere.

    ``root`` is a path without links, so that a folder that is one leads elsewhere too.
    """
    try:
        found = (root / name).resolve()
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
        return None
