"""A bundle: an artifact and its cases in one folder, so that a device needs nothing else.

    bundle.json                     what is here, with the SHA-256 of every file
    classics.pte                    the artifact, under its own name (or a .mlpackage folder)
    cases/000/input-0.bin           raw inputs in the order the artifact takes them
    cases/000/reference-0.bin       raw outputs of the packed model

Everything in it is data. Paths are made from counts, never taken from the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgesparse.budget import Budget
from edgesparse.errors import CorruptPack, SourceError
from edgesparse.store.strict_json import parse_object
from edgesparse_device.folder import sha256_of
from edgesparse_device.tensors import TensorSpec, read_raw

MANIFEST = "bundle.json"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,79}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One set of inputs and what the packed model makes of it.

    Attributes:
        name: What people see; also how records of two runs are matched.
        inputs: In the order the artifact takes them.
        outputs: In the order the artifact gives them.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        check_name("case", self.name)
        if not self.outputs:
            raise SourceError(f"case {self.name}: no output to compare")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: The folder.
        artifact: File name of the artifact in it.
        target: Exporter that wrote the artifact: ``executorch`` or ``coreml``.
        sha256: Digest of the artifact.
        nbytes: Size of the artifact.
        task: ``causal-lm`` when outputs are next-token logits, else ``generic``.
        tolerance: Largest relative error of an output that counts as right.
        budget: What the artifact may cost.
        cases: At least one, names distinct.
        tool_versions: What made the artifact and the references.
    """

    path: Path
    artifact: str
    target: str
    sha256: str
    nbytes: int
    task: str
    tolerance: float
    budget: Budget
    cases: tuple[Case, ...]
    tool_versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("artifact", self.artifact)
        names = [case.name for case in self.cases]
        if not names or len(set(names)) != len(names):
            raise SourceError(f"{self.path}: a bundle needs cases of distinct names, has {names}")

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds that of every file."""
        return sha256_of(self.path / MANIFEST)

    @property
    def artifact_path(self) -> Path:
        """The artifact itself."""
        return self.path / self.artifact

    def input_path(self, index: int, position: int) -> Path:
        """Return the raw file of an input of case ``index``."""
        return self.path / "cases" / f"{index:03d}" / f"input-{position}.bin"

    def reference_path(self, index: int, position: int) -> Path:
        """Return the raw file of a reference output of case ``index``."""
        return self.path / "cases" / f"{index:03d}" / f"reference-{position}.bin"

    def inputs(self, index: int) -> list[NDArray[Any]]:
        """Return the inputs of case ``index``."""
        specs = self.cases[index].inputs
        return [read_raw(self.input_path(index, i), spec) for i, spec in enumerate(specs)]

    def references(self, index: int) -> list[NDArray[Any]]:
        """Return the reference outputs of case ``index``."""
        specs = self.cases[index].outputs
        return [read_raw(self.reference_path(index, i), spec) for i, spec in enumerate(specs)]

    @property
    def files(self) -> list[str]:
        """Relative paths of everything but the manifest; the artifact first."""
        paths = [self.artifact_path]
        for index, case in enumerate(self.cases):
            paths += [self.input_path(index, i) for i in range(len(case.inputs))]
            paths += [self.reference_path(index, i) for i in range(len(case.outputs))]
        return [path.relative_to(self.path).as_posix() for path in paths]


def check_name(what: str, name: str) -> None:
    """Refuse a name that could mean something to a shell, a file system or a terminal.

    Raises:
        SourceError: Anything but letters, digits, dot, underscore, dash and inner spaces.
    """
    if not _NAME.fullmatch(name) or name.endswith(" "):
        raise SourceError(
            f"{what} name {name!r}: expected 1 to 80 letters, digits, spaces or . _ - , "
            "beginning with a letter or digit"
        )


def write_manifest(bundle: Bundle) -> None:
    """Write ``bundle.json`` of a folder that already has all other files."""
    manifest = {
        "kind": "edgesparse device bundle",
        "format": FORMAT,
        "artifact": bundle.artifact,
        "target": bundle.target,
        "task": bundle.task,
        "tolerance": bundle.tolerance,
        "budget": bundle.budget.to_json(),
        "tool_versions": dict(bundle.tool_versions),
        "cases": [
            {
                "name": case.name,
                "inputs": [spec.to_json() for spec in case.inputs],
                "outputs": [spec.to_json() for spec in case.outputs],
            }
            for case in bundle.cases
        ],
        "sha256": {name: sha256_of(bundle.path / name) for name in bundle.files},
    }
    (bundle.path / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle, every file checked against its SHA-256.

    Raises:
        SourceError: No bundle there, or one that makes no sense.
        CorruptPack: A file is missing, damaged or not JSON.
    """
    path = Path(path)
    try:
        text = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise SourceError(
            f"{path} is no bundle: {MANIFEST}: {error.strerror}; make one with "
            "'edgesparse device bundle'"
        ) from None
    manifest = parse_object(text, f"{path / MANIFEST}")
    version = manifest.get("format")
    if version != FORMAT:
        raise SourceError(f"{path}: bundle format {version}; this edgesparse reads {FORMAT}")
    try:
        bundle = _parse(path, manifest)
        _check_files(bundle, manifest["sha256"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptPack(f"{path / MANIFEST}: {type(error).__name__}: {error}") from None
    return bundle


def _parse(path: Path, manifest: Mapping[str, Any]) -> Bundle:
    where = str(path / MANIFEST)
    check_name("artifact", manifest["artifact"])
    artifact = path / manifest["artifact"]
    cases = tuple(
        Case(
            name=case["name"],
            inputs=tuple(TensorSpec.from_json(spec, where) for spec in case["inputs"]),
            outputs=tuple(TensorSpec.from_json(spec, where) for spec in case["outputs"]),
        )
        for case in manifest["cases"]
    )
    return Bundle(
        path=path,
        artifact=manifest["artifact"],
        target=str(manifest["target"]),
        sha256=str(manifest["sha256"][manifest["artifact"]]),
        nbytes=sum(p.stat().st_size for p in [artifact, *artifact.rglob("*")] if p.is_file()),
        task=str(manifest["task"]),
        tolerance=float(manifest["tolerance"]),
        budget=Budget(**manifest["budget"]),
        cases=cases,
        tool_versions={str(k): str(v) for k, v in manifest["tool_versions"].items()},
    )


def _check_files(bundle: Bundle, digests: Mapping[str, str]) -> None:
    for name in bundle.files:
        if not (bundle.path / name).exists():
            raise CorruptPack(f"{bundle.path}: {name} is missing; make the bundle again")
        if sha256_of(bundle.path / name) != digests[name]:
            raise CorruptPack(f"{bundle.path}: {name} is damaged; make the bundle again")
