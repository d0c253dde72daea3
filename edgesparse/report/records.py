"""Device records in a report: what ran where, how right it was, how fast if that is a speed at all.

A record is the JSON that ``edgesparse device run`` writes. Only the keys shown here are read; times
of an emulator have other names in it (``emulated_…``), so they cannot get into a table of speeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse.budget import format_size
from edgesparse.errors import CorruptPack, SourceError
from edgesparse.report.words import NOTHING, percent
from edgesparse.store.digest import sha256_of_files
from edgesparse.store.strict_json import parse_object

KIND = "edgesparse device record"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class DeviceRun:
    """One line of the report's device table, and what the line is about.

    Attributes:
        device: Name, processor, and whether it is emulated.
        artifact: File name.
        artifact_sha256: Of the file that ran.
        cases: How many of the cases were right.
        error: Largest relative error, and the agreement of tokens where there are any.
        times: Load time and latency at 50, 90 and 99 %, or why there are none; where the system
            tells, how many operations each processor is preferred for.
        memory: Highest resident memory.
        verdict: The record's own words.
        ok: Whether all was right and within the budget.
    """

    device: str
    artifact: str
    artifact_sha256: str
    cases: str
    error: str
    times: str
    memory: str
    verdict: str
    ok: bool


def read_run(path: Path) -> DeviceRun:
    """Read one record.

    Raises:
        SourceError: No such file, or not a device record.
        CorruptPack: Not JSON, or a field is missing or of another kind.
    """
    value = read_document(path)
    try:
        return _run(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptPack(
            f"{path}: {type(error).__name__}: {error}; run the device again"
        ) from None


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON of a device record, known to be one of this format.

    Raises:
        SourceError: No such file, or not a device record.
        CorruptPack: Not a JSON object.
    """
    try:
        value = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    if value.get("kind") != KIND or value.get("format") != FORMAT:
        raise SourceError(
            f"{path}: kind {value.get('kind')!r}, format {value.get('format')!r}; expected a file "
            f"that edgesparse device run wrote ({KIND!r}, format {FORMAT})"
        )
    return value


def require_same_file(runs: Iterable[DeviceRun], artifacts: Sequence[Path]) -> None:
    """Check that a record named like one of the artifacts is about that very file.

    Raises:
        SourceError: It ran another file of that name.
    """
    digests = {a.name: sha256_of_files([a]) for a in artifacts if a.is_file()}
    for run in runs:
        if digests.get(run.artifact, run.artifact_sha256) != run.artifact_sha256:
            raise SourceError(
                f"the record of {run.device} ran another {run.artifact} (SHA-256 "
                f"{run.artifact_sha256[:12]}…) than the one given ({digests[run.artifact][:12]}…); "
                "run the device again, or leave the record out"
            )


def _run(value: Mapping[str, Any]) -> DeviceRun:
    device, cases = value["device"], list(value["cases"])
    kind = f"{device['abi']}, emulated" if device["emulated"] else str(device["abi"])
    right = sum(case["status"] == "ok" for case in cases)
    peak = value["peak_nbytes"]
    return DeviceRun(
        device=" · ".join(part for part in (device["name"], kind, device["cpu"]) if part),
        artifact=str(value["artifact"]),
        artifact_sha256=str(value["artifact_sha256"]),
        cases=f"{right} of {len(cases)} right",
        error=_error(cases),
        times="; ".join([_times(cases, emulated=bool(device["emulated"])), *_placement(device)]),
        memory=NOTHING if peak is None else format_size(int(peak)),
        verdict=str(value["verdict"]),
        ok=bool(value["ok"]),
    )


def _placement(device: Mapping[str, Any]) -> list[str]:
    """Older records have none, and most devices do not tell."""
    return [f"{count} on the {where}" for where, count in device.get("placement", {}).items()]


def _error(cases: Sequence[Mapping[str, Any]]) -> str:
    errors = [output["relative"] for case in cases for output in case["outputs"]]
    if not errors or None in errors:
        return NOTHING
    words = f"{max(map(float, errors)):.1e}"
    agreed = [float(c["token_agreement"]) for c in cases if c["token_agreement"] is not None]
    return f"{words}, {percent(min(agreed))} of tokens" if agreed else words


def _times(cases: Sequence[Mapping[str, Any]], *, emulated: bool) -> str:
    """Return the slowest case's times: cases of one artifact differ in their inputs only."""
    if emulated:
        return "emulated: not a speed"
    timed = [case for case in cases if case["latency_ms"] is not None]
    if not timed:
        return NOTHING
    slowest = max(timed, key=lambda case: float(case["latency_ms"]["p50"]))
    at = slowest["latency_ms"]
    percentiles = " / ".join(f"{float(at[p]):.3g}" for p in ("p50", "p90", "p99"))
    return f"load {float(slowest['load_ms']):.3g}; {percentiles} ms"
