"""Export and validate: a compressed model to a target's file, and the proof that it is the same.

Targets are rows of ``exporters``, known here only by name. This module owns what is the same for
all of them: refusing what a target cannot hold, writing under a temporary name, and holding the
written file against the budget.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgesparse.budget import Budget, format_size
from edgesparse.errors import (
    BudgetExceeded,
    OutputExists,
    SourceError,
    Unsupported,
    UsageError,
)
from edgesparse.exporters import (
    EXPORTERS,
    Exporter,
    counted_options,
    installed,
    schemes_of,
    suffixes,
    target_of,
)
from edgesparse.model import CompressedModel
from edgesparse.packed import SYMMETRIC
from edgesparse.planner.types import Plan
from edgesparse.store.replacing import replacing
from edgesparse.store.space import require_space
from edgesparse.verdict import Artifact, LayerCheck, OutputCheck, Verdict, compare_output

__all__ = [
    "EXPORTERS",
    "Artifact",
    "Exporter",
    "LayerCheck",
    "OutputCheck",
    "Verdict",
    "check_output",
    "compare_output",
    "export",
    "exporter_of",
    "inspect",
    "nbytes_on_disk",
    "require_exists",
    "run",
    "schemes_of",
    "suffixes",
    "target_of",
    "validate",
]


def export(
    compressed: CompressedModel,
    target: str | None = None,
    path: str | Path | None = None,
    *,
    budget: Budget | None = None,
    force: bool = False,
    keep: bool = False,
    **options: Any,
) -> Artifact:
    """Write ``compressed`` as a file of ``target``.

    Args:
        compressed: The packed model.
        target: ``coreml``, ``executorch`` or any registered exporter; None infers it from the
            ending of ``path``.
        path: The file to write.
        budget: What the file may cost. None takes the plan's own budget when the plan was made for
            this target; a budget planned for the packed weights alone is not applied to the file.
        force: Replace what is at ``path``.
        keep: Leave the file there even when it breaks the budget; the error is raised all the same.
        **options: Handed whole to the exporter, those of a plan for this target by default.

    Raises:
        UsageError: No path, a target that cannot be inferred, or an option it does not have.
        MissingDependency: The target's tools are not installed.
        Unsupported: A format or operator the target has no form for.
        OutputExists: ``path`` exists and ``force`` is not set.
        BudgetExceeded: The written file is larger than the budget; it is removed.
        FormatError: The disk has no room for the file as it is predicted, or refuses it.
    """
    if path is None:
        raise UsageError("export needs a path to write to")
    path = Path(path)
    target = check_output(target, path, force=force)
    exporter = installed(target)
    _refuse_unknown_formats(compressed, target, exporter)
    planned, said = _planned_options(compressed.plan, target, options)
    _refuse_unknown_options(target, exporter.export, {**planned, **options})
    limits = budget or (compressed.plan.budget if compressed.plan.target == target else Budget())
    if not options:  # with options of its own nothing is predicted
        require_space(path, exporter.predict_nbytes(compressed.plan))
    with replacing(path, force=force) as temporary:
        written = exporter.export(compressed, temporary, **planned, **options)
        broken = _broken_limits(written, limits)
        if broken and not keep:
            raise BudgetExceeded(_over_budget(compressed, written, broken))
    artifact = replace(written, path=path, notes=(*said, *written.notes))
    if broken:
        raise BudgetExceeded(f"{_over_budget(compressed, artifact, broken)}; kept at {path}")
    return artifact


def check_output(target: str | None, path: Path, *, force: bool) -> str:
    """Return the target to write ``path`` for, knowing that nothing is in the way.

    Cheap, so that a caller can fail before any model is opened. Arguments and errors are those of
    ``export``.
    """
    target = target or target_of(path)
    exporter = installed(target)
    if path.suffix != exporter.suffix:
        raise UsageError(f"{path}: a file for {target} ends in {exporter.suffix}")
    if path.exists() and not force:
        raise OutputExists(f"{path} exists; --force replaces it")
    return target


def validate(
    artifact: Artifact | str | Path, compressed: CompressedModel, **options: Any
) -> Verdict:
    """Read an artifact back, execute it on this host, and compare it with the packed model.

    Args:
        artifact: What ``export`` returned, or the path of a file; the target is inferred.
        compressed: The packed model it was made from.
        **options: Handed whole to the exporter.

    Raises:
        SourceError: No such file, or not one of a known target.
        MissingDependency: The target's tools are not installed.
    """
    path = artifact.path if isinstance(artifact, Artifact) else Path(artifact)
    target = artifact.target if isinstance(artifact, Artifact) else target_of(path)
    exporter = installed(target)
    require_exists(path)
    return exporter.validate(path, compressed, **options)


def inspect(path: str | Path) -> Mapping[str, Any]:
    """Return what is in an artifact, as JSON values.

    Raises:
        SourceError: No such file, or not one of a known target.
    """
    path = Path(path)
    return exporter_of(path)[1].inspect(path)


def run(path: str | Path, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Execute an artifact once on this host.

    Args:
        path: The artifact.
        inputs: Arrays by input name.

    Returns:
        Arrays by output name.

    Raises:
        SourceError: No such file, or not one of a known target.
    """
    path = Path(path)
    return exporter_of(path)[1].run(path, inputs)


def exporter_of(path: Path) -> tuple[str, Exporter]:
    """Return the target of an artifact that exists, and its row.

    Raises:
        UsageError: No target has files that end so.
        MissingDependency: The target's tools are not installed.
        SourceError: No such file.
    """
    target = target_of(path)
    exporter = installed(target)
    require_exists(path)
    return target, exporter


def nbytes_on_disk(path: Path) -> int:
    """Return the size of a file, or of all files of a package directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def require_exists(path: Path) -> None:
    """Refuse a path at which there is nothing.

    Raises:
        SourceError: Nothing is there.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file or directory")


def _refuse_unknown_formats(compressed: CompressedModel, target: str, exporter: Exporter) -> None:
    schemes = schemes_of(target)
    shifted = [
        f"{name} ({packed.spec.scheme})"
        for name, packed in compressed.packed.items()
        if packed.spec.scheme not in schemes
    ]
    if shifted:
        raise Unsupported(
            f"{target} cannot hold {', '.join(shifted[:5])}"
            + (f" and {len(shifted) - 5} more" if len(shifted) > 5 else "")
            + f"; its weights are {', '.join(sorted(schemes))}: compress these layers with scheme "
            f"{SYMMETRIC!r}, or export to another target"
        )
    wrong = [
        f"{name} ({packed.spec.name})"
        for name, packed in compressed.packed.items()
        if packed.spec.name not in exporter.accepts
    ]
    if wrong:
        known = ", ".join(sorted(exporter.accepts))
        raise Unsupported(
            f"{target} cannot hold {', '.join(wrong[:5])}"
            + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            + f"; it holds {known}: compress these layers to one of them"
        )


def _refuse_unknown_options(
    target: str, function: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Refuse options the exporter does not name; one that takes any checks them itself."""
    known = signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    named = [name for name, p in known.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in named:
            near = difflib.get_close_matches(name, named, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"{target} has no option {name!r}; known: {', '.join(named) or 'none'}{hint}"
            )


def _planned_options(
    plan: Plan, target: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the plan's options where none are given, and a note for each and each that differs."""
    if plan.target != target:
        return {}, ()
    counted = counted_options(target) if plan.latency_of == target else {}
    planned = {name: value for name, value in plan.options.items() if name not in options}
    notes = [f"{name}={value}, as planned" for name, value in planned.items()]
    for name, value in {**counted, **plan.options}.items():
        if name in options and options[name] != value:
            notes.append(f"{name}={options[name]}, where the plan counted {value}")
    return planned, tuple(notes)


def _broken_limits(artifact: Artifact, limits: Budget) -> list[str]:
    """Return one phrase per limit the artifact breaks."""
    pairs = (("file", artifact.nbytes, limits.file), ("peak", artifact.peak_nbytes, limits.peak))
    return [
        f"{name} {format_size(found)} is over the budget of {format_size(limit)}"
        for name, found, limit in pairs
        if found is not None and limit is not None and found > limit
    ]


def _over_budget(compressed: CompressedModel, artifact: Artifact, broken: list[str]) -> str:
    weights = format_size(compressed.nbytes)
    return (
        f"{artifact.path.name}: {'; '.join(broken)} ({weights} of packed weights); compress with "
        f"--target {artifact.target} so that the plan counts this target's bytes"
    )
