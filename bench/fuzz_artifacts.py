"""Valid files of both targets, and what reads their mutations.

``fuzz_readers.py`` runs them with its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import read_weights
from edgesparse_converters.executorch.apart import read_tensors
from edgesparse_converters.executorch.bundled import read_bundled

from edgesparse.exporting import export, inspect
from edgesparse.model import CompressedModel

Reader = tuple[bytes, Callable[[bytes], object]]
PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def artifact_readers(folder: Path, small: CompressedModel) -> dict[str, Reader]:
    """Return, by name, the readers of what the exporters write."""
    folder.mkdir()
    return {
        "pte": program_reader(folder / "net.pte", small),
        "ptd": apart_reader(folder / "apart" / "net.pte", small),
        "bpte": bundled_reader(folder / "bundled" / "net.pte", small),
        "mlmodel": package_reader(folder / "net.mlpackage", PROGRAM, small),
        "mlweights": package_reader(folder / "weights.mlpackage", WEIGHTS, small),
        "mlmanifest": package_reader(folder / "manifest.mlpackage", "Manifest.json", small),
    }


def program_reader(path: Path, small: CompressedModel) -> Reader:
    """Return a small program for XNNPACK, and what looks into it."""
    export(small, path=path, lowering="xnnpack")
    return path.read_bytes(), lambda content: inspect(_at(path, content))


def apart_reader(path: Path, small: CompressedModel) -> Reader:
    """Return the weights of a program in a file apart, and what reads them."""
    export(small, path=path, lowering="xnnpack", apart=True)
    weights = next(path.parent.glob("*.ptd"))
    return weights.read_bytes(), lambda content: read_tensors(_at(weights, content))


def bundled_reader(path: Path, small: CompressedModel) -> Reader:
    """Return a program bundled with a case, and what reads it."""
    export(small, path=path, lowering="xnnpack", cases=1)
    bundled = next(path.parent.glob("*.bpte"))
    return bundled.read_bytes(), lambda content: read_bundled(_at(bundled, content))


def package_reader(path: Path, name: str, small: CompressedModel) -> Reader:
    """Return one file of a Core ML package, and what looks into the package and its weights."""
    file = export(small, path=path).path / name

    def read(content: bytes) -> None:
        _at(file, content)
        inspect(path)
        read_weights(Package(path))

    return file.read_bytes(), read


def _at(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
