"""What one run of a bundle on one device showed, as a value and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from edgesparse.budget import Budget, format_size
from edgesparse.errors import CorruptPack
from edgesparse.report.records import FORMAT, KIND, read_document
from edgesparse_device.folder import write_atomically
from edgesparse_device.measure import OutputError


class Status(StrEnum):
    """How a case ended."""

    OK = "ok"
    WRONG = "wrong"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """A device as it describes itself.

    Attributes:
        name: As given on the command line: ``host``, ``qemu-arm64``, ``adb:SERIAL``, …
        os: System and version.
        abi: Processor architecture: ``x86_64``, ``aarch64``, …
        cpu: Model of the processor.
        cpu_features: Vector features its kernels can choose by.
        emulated: Whether another processor plays it; its times then say nothing.
        tools: Versions of what ran the artifact.
        placement: Operations of the artifact by the processor the system prefers, where it tells.
    """

    name: str
    os: str = ""
    abi: str = ""
    cpu: str = ""
    cpu_features: tuple[str, ...] = ()
    emulated: bool = False
    tools: Mapping[str, str] = field(default_factory=dict)
    placement: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one execution after warm-up, in milliseconds, over ``runs`` executions."""

    p50: float
    p90: float
    p99: float
    runs: int
    warmup: int

    @classmethod
    def of(cls, milliseconds: tuple[float, ...], *, warmup: int) -> Latency:
        """Return the percentiles of measured times, at least one."""
        p50, p90, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 99)))
        return cls(p50=p50, p90=p90, p99=p99, runs=len(milliseconds), warmup=warmup)


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One case on one device.

    Attributes:
        name: Name of the case.
        status: Right, outside the tolerance, or no output at all.
        error: Why, when not right.
        outputs: One entry per output; empty when failed.
        token_agreement: Language models: fraction of positions with the reference's token.
        tokens: Language models: the most likely token at every position.
        output_sha256: Digest over the raw outputs: equal digests are equal bits.
        load_ms: Time to load the artifact.
        latency: Times of the execution.
        peak_nbytes: Resident memory that loading and executing added at its highest.
    """

    name: str
    status: Status
    error: str = ""
    outputs: tuple[OutputError, ...] = ()
    token_agreement: float | None = None
    tokens: tuple[int, ...] = ()
    output_sha256: str = ""
    load_ms: float | None = None
    latency: Latency | None = None
    peak_nbytes: int | None = None

    @property
    def relative(self) -> float:
        """Largest relative error of its outputs; inf when there are none."""
        return max((output.relative for output in self.outputs), default=math.inf)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run on one device.

    Attributes:
        device: The device.
        artifact: File name.
        target: Exporter that wrote it.
        artifact_sha256: Its digest.
        bundle_sha256: Digest of the bundle's manifest, and so of every case.
        file_nbytes: Its size.
        budget: What it may cost.
        tolerance: Largest relative error that counts as right.
        started: When, ISO 8601 in UTC.
        cases: Results in the order of the bundle; fewer than the bundle's if ``error`` is set.
        error: Why the device could not run (all of) the cases.
    """

    device: DeviceInfo
    artifact: str
    target: str
    artifact_sha256: str
    bundle_sha256: str
    file_nbytes: int
    budget: Budget
    tolerance: float
    started: str
    cases: tuple[CaseResult, ...] = ()
    error: str = ""

    @property
    def peak_nbytes(self) -> int | None:
        """Highest memory of all cases; None if not measured."""
        return max((c.peak_nbytes for c in self.cases if c.peak_nbytes is not None), default=None)

    @property
    def broken_limits(self) -> tuple[str, ...]:
        """One phrase per limit of the budget that is broken.

        An emulator's own memory is in an emulated peak, so that one is not held against it.
        """
        peak = None if self.device.emulated else self.peak_nbytes
        pairs = (
            ("file", self.file_nbytes, self.budget.file),
            ("peak memory", peak, self.budget.peak),
        )
        return tuple(
            f"{what} {format_size(found)} is over the budget of {format_size(limit)}"
            for what, found, limit in pairs
            if found is not None and limit is not None and found > limit
        )

    @property
    def ok(self) -> bool:
        """Whether every case is right and the budget is kept."""
        return (
            not self.error
            and bool(self.cases)
            and all(case.status is Status.OK for case in self.cases)
            and not self.broken_limits
        )

    @property
    def verdict(self) -> str:
        """One line: fine, or what is wrong."""
        wrong = [case for case in self.cases if case.status is not Status.OK]
        parts = [self.error] if self.error else []
        parts += [f"{case.name}: {case.error}" for case in wrong] + list(self.broken_limits)
        return "; ".join(parts) or f"all {len(self.cases)} cases right"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; what is derived is in it for readers, and ignored when read."""
        value = asdict(self) | {"budget": self.budget.to_json()}
        value["cases"] = [_case_to_json(case, self.device.emulated) for case in self.cases]
        return {
            "kind": KIND,
            "format": FORMAT,
            **_finite(value),
            "peak_nbytes": self.peak_nbytes,
            "ok": self.ok,
            "verdict": self.verdict,
        }

    def save(self, path: Path) -> None:
        """Write the JSON form, whole or not at all."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def load_record(path: str | Path) -> Record:
    """Read what ``Record.save`` wrote.

    Raises:
        SourceError: No such file, or not a record.
        CorruptPack: Not JSON, or a field is missing or of another kind.
    """
    value = read_document(Path(path))
    try:
        return _parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptPack(f"{path}: {type(error).__name__}: {error}") from None


def _parse(value: Mapping[str, Any]) -> Record:
    device = dict(value["device"])
    device["cpu_features"] = tuple(device["cpu_features"])
    return Record(
        device=DeviceInfo(**device),
        artifact=str(value["artifact"]),
        target=str(value["target"]),
        artifact_sha256=str(value["artifact_sha256"]),
        bundle_sha256=str(value["bundle_sha256"]),
        file_nbytes=int(value["file_nbytes"]),
        budget=Budget(**value["budget"]),
        tolerance=float(value["tolerance"]),
        started=str(value["started"]),
        cases=tuple(_case_from_json(case) for case in value["cases"]),
        error=str(value["error"]),
    )


def _case_to_json(case: CaseResult, emulated: bool) -> dict[str, Any]:
    """An emulated time has a name of its own, so that nobody reads it as a speed."""
    value = asdict(case)
    latency, load = value.pop("latency"), value.pop("load_ms")
    prefix = "emulated_" if emulated else ""
    return value | {f"{prefix}load_ms": load, f"{prefix}latency_ms": latency}


def _case_from_json(value: Mapping[str, Any]) -> CaseResult:
    fields = {key.removeprefix("emulated_"): item for key, item in value.items()}
    latency = fields.pop("latency_ms")
    outputs = fields.pop("outputs")
    return CaseResult(
        **fields | {"status": Status(fields["status"]), "tokens": tuple(fields["tokens"])},
        outputs=tuple(_error_from_json(output) for output in outputs),
        latency=Latency(**latency) if latency else None,
    )


def _error_from_json(value: Mapping[str, Any]) -> OutputError:
    """Null stands for an infinite error, except where there is no top-1 agreement."""
    infinite = {key: math.inf for key in ("max_abs", "relative") if value[key] is None}
    return OutputError(**{**value, **infinite})


def _finite(value: Any) -> Any:
    """Infinite errors become null: JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
