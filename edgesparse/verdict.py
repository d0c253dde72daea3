"""What an export made, and what checking it showed: artifacts and verdicts, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file (or package directory) a target's runtime can load.

    Attributes:
        path: Where it is.
        target: Row of the exporter registry that wrote it.
        nbytes: Its size on disk; of a package, the sum over its files.
        tool_versions: Version of every tool that had a hand in it, by package name.
        lowering: How each packed tensor was written, by ``TensorInfo.name``, for example
            ``constexpr_sparse_blockwise_shift_scale`` or ``XNNPACK 4-bit, group 128``.
        peak_nbytes: Predicted peak memory in the target's runtime; None if not predicted.
        notes: What a person should know: what was decoded, widened or left out, and why.
    """

    path: Path
    target: str
    nbytes: int
    tool_versions: Mapping[str, str]
    lowering: Mapping[str, str] = field(default_factory=dict)
    peak_nbytes: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return every field as JSON values."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """One packed tensor as read back from an artifact, against the packed model.

    Attributes:
        name: ``TensorInfo.name``.
        lowering: How the artifact holds it.
        max_abs_error: Largest difference between a weight read back and the packed one; nan when
            the target's file does not let the weight be read.
        tolerance: Largest difference allowed; 0 asks for equality bit for bit.
    """

    name: str
    lowering: str
    max_abs_error: float
    tolerance: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether every weight is the very same number."""
        return self.max_abs_error == 0.0

    @property
    def ok(self) -> bool:
        """Whether the difference is allowed; a weight that cannot be read proves nothing."""
        return self.max_abs_error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class OutputCheck:
    """One output of the artifact, executed, against the packed model on the same inputs.

    Attributes:
        name: Name of the output.
        max_abs_error: Largest difference of one element.
        relative_error: ``|y - reference| / |reference|`` in the 2-norm.
        tolerance: Largest ``relative_error`` allowed.
    """

    name: str
    max_abs_error: float
    relative_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; nan is not."""
        return self.relative_error <= self.tolerance


def describe_inputs(count: int, *, given: bool = False, seed: int = 0) -> str:
    """Return the words of a note: how many inputs a file was run on, and where they come from."""
    return f"{count} inputs, {'given' if given else f'random, seed {seed}'}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What executing an artifact on this host showed.

    Attributes:
        path: The artifact.
        target: Row of the exporter registry that ran it.
        layers: One entry per packed tensor.
        outputs: One entry per output of the model.
        runtime: What executed it, with its version.
        notes: What a person should know: inputs used, why a tolerance is not zero.
    """

    path: Path
    target: str
    layers: tuple[LayerCheck, ...]
    outputs: tuple[OutputCheck, ...]
    runtime: str = ""
    notes: tuple[str, ...] = ()

    @property
    def checks(self) -> tuple[LayerCheck | OutputCheck, ...]:
        """All of them, layers first."""
        return (*self.layers, *self.outputs)

    @property
    def ok(self) -> bool:
        """Whether every layer and every output is within its tolerance, and there was any."""
        return bool(self.outputs) and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return every field as JSON values, and what was concluded from them."""
        return {
            **asdict(self),
            "path": str(self.path),
            "layers": [{**asdict(c), "equal": c.equal, "ok": c.ok} for c in self.layers],
            "outputs": [{**asdict(check), "ok": check.ok} for check in self.outputs],
            "ok": self.ok,
        }

    def __str__(self) -> str:
        equal = sum(layer.equal for layer in self.layers)
        outputs = ", ".join(
            f"{o.name}: relative error {o.relative_error:.2e} (allowed {o.tolerance:.0e})"
            for o in self.outputs
        )
        wrong = [check.name for check in self.checks if not check.ok]
        return (
            f"{self.path.name}: {equal} of {len(self.layers)} packed tensors equal bit for bit; "
            f"{outputs or 'no output was computed'}"
            + (f"; outside tolerance: {', '.join(wrong)}" if wrong else "")
        )


def compare_output(
    name: str, value: NDArray[Any], reference: NDArray[Any], *, tolerance: float
) -> OutputCheck:
    """Compare one output of an artifact with the packed model's.

    A shape that differs or a value that is not finite gives an error of infinity or nan: not ok.
    """
    if value.shape != reference.shape:
        return OutputCheck(
            name=name, max_abs_error=np.inf, relative_error=np.inf, tolerance=tolerance
        )
    difference = value.astype(np.float64) - reference.astype(np.float64)
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    return OutputCheck(
        name=name,
        max_abs_error=float(np.abs(difference).max(initial=0.0)),
        relative_error=float(np.linalg.norm(difference)) / (norm or 1.0),
        tolerance=tolerance,
    )


def worst_outputs(
    found: Iterable[Mapping[str, NDArray[Any]]],
    references: Iterable[Mapping[str, NDArray[Any]]],
    *,
    tolerance: float,
) -> tuple[OutputCheck, ...]:
    """Return the worst check of each output over several calls.

    An output that is not there is infinitely wrong; nan is worse than any number.
    """
    worst: dict[str, OutputCheck] = {}
    for outputs, expected in zip(found, references, strict=True):
        for name, reference in expected.items():
            value = outputs.get(name, np.zeros(0, np.float32))
            check = compare_output(name, value, reference, tolerance=tolerance)
            known = worst.get(name, check).relative_error
            if name not in worst or not (np.isnan(known) or check.relative_error <= known):
                worst[name] = check
    return tuple(worst.values())
