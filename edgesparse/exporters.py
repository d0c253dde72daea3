"""The rows of targets: what one has to be, which there are, and which one a file is for."""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgesparse.errors import MissingDependency, UsageError
from edgesparse.model import CompressedModel
from edgesparse.packed import SYMMETRIC
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.registry import Registry
from edgesparse.verdict import Artifact, Verdict

logger = logging.getLogger(__name__)

REQUIRED = (
    "suffix", "accepts", "packages", "extra", "export", "validate", "predict_nbytes", "inspect",
    "run",
)  # fmt: skip


class Exporter(Protocol):
    """One target. Its module loads nothing heavy until ``export``, ``validate`` or ``run``.

    Attributes:
        suffix: Ending of its files, with the dot; what infers the target from a path.
        accepts: Names of the formats it can write; of their schemes only the symmetric one, unless
            the row has an attribute ``schemes`` that names others.
        packages: Importable packages it needs.
        extra: The pip extra that installs them.
    """

    suffix: str
    accepts: frozenset[str]
    packages: tuple[str, ...]
    extra: str

    def export(self, compressed: CompressedModel, path: Path, **options: Any) -> Artifact:
        """Write ``compressed`` to ``path``, which does not exist, and say how.

        Raises:
            Unsupported: Operators or layers the target has no form for, by name.
        """

    def validate(self, path: Path, compressed: CompressedModel, **options: Any) -> Verdict:
        """Read the weights of ``path`` back, execute it here, compare with ``compressed``.

        Raises:
            SourceError: ``path`` is not a file of this target, or is damaged.
        """

    def predict_nbytes(self, plan: Plan) -> int:
        """Return the expected size of the artifact without weights and without the target's tools.

        Part of every plan with a target, so it must cost milliseconds.
        """

    def inspect(self, path: Path) -> Mapping[str, Any]:
        """Return what is in the file as JSON values: inputs, outputs, operators, where bytes go."""

    def run(self, path: Path, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Execute the artifact once on this host and return its outputs by name."""


@runtime_checkable
class Paced(Protocol):
    """A row whose runtime is here and can be timed: plans for it count its own products."""

    def product_rates(self, entries: Sequence[TensorPlan], **options: Any) -> Sequence[float]:
        """Return how long this host takes for the product of one token with each tensor.

        Measured through the runtime, on what ``export`` writes when it is given these options, with
        one thread and weights that come from memory. A row names, keyword-only and with the
        defaults of ``export``, those of its options that times depend on: a plan takes no others.

        Args:
            entries: Matrices and what is done with them; also as they are, and tied ones. None of
                them only checks the options.
            **options: Of ``export``.

        Returns:
            Nanoseconds a weight of the whole matrix, removed ones included, in the same order.

        Raises:
            UsageError: An option has no such value.
            MissingTool: Something that the runtime needs cannot be built here.
            SourceError: The runtime failed.
        """

    def routed_as(self, entry: TensorPlan, **options: Any) -> str | None:
        """Return which operator for the matrices of all experts could hold this one.

        Where those of every stack of a layer have one in common, a token meets only the experts it
        is sent to; else, and where one has none (None), it meets all of them.
        """


EXPORTERS: Registry[Exporter] = Registry(
    "exporter",
    {
        "coreai": "edgesparse_converters.coreai:EXPORTER",
        "coreml": "edgesparse_converters.coreml:EXPORTER",
        "executorch": "edgesparse_converters.executorch:EXPORTER",
    },
)


def suffixes() -> dict[str, str]:
    """Return the target of every known ending of a file.

    A row that cannot be loaded, which is then somebody else's, is left out and logged: whoever asks
    for that target by name is told, all others go on.
    """
    found = {}
    for name in EXPORTERS:
        try:
            found[EXPORTERS.get(name).suffix] = name
        except Exception as error:  # code of a third party: it may raise anything
            logger.warning("exporter %r is left out: %s: %s", name, type(error).__name__, error)
    return found


def target_of(path: Path) -> str:
    """Return the target whose files end as ``path`` does.

    Raises:
        UsageError: None does; the message lists the endings.
    """
    by_suffix = suffixes()
    if path.suffix in by_suffix:
        return by_suffix[path.suffix]
    near = difflib.get_close_matches(path.suffix, by_suffix, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(f"{suffix} ({name})" for suffix, name in sorted(by_suffix.items()))
    raise UsageError(f"{path}: the ending says no target; known: {known}{hint}")


def installed(target: str) -> Exporter:
    """Return a target's row, complete, its packages known to be there.

    Raises:
        UnknownName: No such target.
        UsageError: The row cannot be loaded or lacks something.
        MissingDependency: The target's tools are not installed.
    """
    try:
        exporter = EXPORTERS.get(target)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"exporter {target!r} cannot be loaded: {error}; mend or uninstall the package it "
            "comes from"
        ) from error
    missing = [name for name in REQUIRED if not hasattr(exporter, name)]
    if missing:
        raise UsageError(
            f"exporter {target!r} has no {', '.join(missing)}; see edgesparse.exporters.Exporter"
        )
    for package in exporter.packages:
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, exporter.extra, f"the target {target}")
    return exporter


def counted_options(target: str | None) -> dict[str, Any]:
    """Return the options of a target that a plan for it counts, with their defaults."""
    row = None if target is None else EXPORTERS.get(target)
    if not isinstance(row, Paced):
        return {}
    known = signature(row.product_rates).parameters.values()
    return {option.name: option.default for option in known if option.kind is option.KEYWORD_ONLY}


def require_counted(target: str | None, options: Mapping[str, Any]) -> None:
    """Refuse options that a plan for this target does not count, and values they cannot have.

    Raises:
        UnknownName: No such target.
        UsageError: As above.
        MissingDependency: The target's tools are not installed.
    """
    known = counted_options(target)
    for name in options:
        if name not in known:
            raise UsageError(
                f"option {name!r}: a plan for {target or 'no target'} counts "
                f"{', '.join(known) or 'none'}; give other options to export"
            )
    row = installed(target) if target is not None else None
    if isinstance(row, Paced):
        row.product_rates([], **options)


def schemes_of(target: str) -> frozenset[str]:
    """Return the schemes of codes a target holds."""
    held: frozenset[str] = getattr(EXPORTERS.get(target), "schemes", frozenset({SYMMETRIC}))
    return held
