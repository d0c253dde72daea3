"""What was predicted of a file beside what it became.

A prediction that a budget was met by has to be right: the file within 0.5 %, or 50 kB of graph and
1.5 kB for each expert where that is more, the peak memory within 10 %, or 2 MB by which the runtime
itself varies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from edgesparse.budget import format_size
from edgesparse.exporting import EXPORTERS, Artifact
from edgesparse.model import CompressedModel, TensorKind

_FILE, _PEAK = 0.005, 0.10
_GRAPH_NBYTES, _RUNTIME_NBYTES = 50_000, 2_000_000
_EXPERT_NBYTES = 1_500  # of graph, where the targets' estimates are for layers of their own


@runtime_checkable
class Weighing(Protocol):
    """What a row of the exporter registry has that can measure memory on this host."""

    def measure_peak(self, path: Path) -> int | None:
        """Return the peak resident bytes of a file's model; None where that cannot be seen."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One predicted size and the real one.

    Attributes:
        name: ``file`` or ``peak memory``.
        predicted: Bytes.
        found: Bytes.
        allowed: How far they may be apart.
    """

    name: str
    predicted: int
    found: int
    allowed: int

    @property
    def ok(self) -> bool:
        """Whether they are near enough."""
        return abs(self.found - self.predicted) <= self.allowed

    def __str__(self) -> str:
        off = (self.found - self.predicted) / self.predicted
        said = f"{self.name} {format_size(self.found)}, predicted {format_size(self.predicted)}"
        return f"{said} ({off:+.1%})"


def reconcile(
    compressed: CompressedModel, artifact: Artifact, *, memory: bool = False
) -> tuple[Compared, ...]:
    """Return what was predicted of an artifact beside what it is.

    Args:
        compressed: The model it was made from.
        artifact: What ``export`` returned, without options of the target's own: those change what
            is written, and no plan knows them.
        memory: Whether to run it and measure its peak memory, where the target can.

    Raises:
        SourceError: The artifact does not run.
    """
    from edgesparse.planner.peak import memory_terms

    exporter = EXPORTERS.get(artifact.target)
    plan = compressed.plan
    predicted = exporter.predict_nbytes(plan)
    experts = sum(entry.tensor.kind is TensorKind.EXPERT for entry in plan.tensors)
    allowed = max(round(_FILE * predicted), _GRAPH_NBYTES + _EXPERT_NBYTES * experts)
    rows = [Compared(name="file", predicted=predicted, found=artifact.nbytes, allowed=allowed)]
    if memory and isinstance(exporter, Weighing):
        terms = memory_terms(compressed.captured, plan.tensors, artifact.target)
        found = exporter.measure_peak(artifact.path)
        if terms and found is not None:
            peak = sum(term.nbytes for term in terms)
            allowed = max(round(_PEAK * peak), _RUNTIME_NBYTES)
            rows.append(Compared(name="peak memory", predicted=peak, found=found, allowed=allowed))
    return tuple(rows)
