"""A bundle on several devices: one record each, kept whatever happens to the others.

A record is written after every case, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from edgesparse.errors import CorruptPack, DeviceError, SourceError
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Device, Effort, RawRun, Session
from edgesparse_device.measure import measure, token_agreement, tokens_of
from edgesparse_device.outcome import DeviceLost
from edgesparse_device.record import (
    CaseResult,
    DeviceInfo,
    Latency,
    Record,
    Status,
    load_record,
)

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is asked for.

    Attributes:
        effort: Executions and time limit of each case.
        records: Folder for one record per device; None keeps nothing and resumes nothing.
        force: Run again what a record already has.
    """

    effort: Effort = field(default_factory=Effort)
    records: Path | None = None
    force: bool = False


def run_bundle(
    bundle: Bundle, devices: Sequence[Device], run: Run, progress: Progress = lambda *_: None
) -> list[Record]:
    """Run every case on every device.

    A device that fails gives a record with an error; the others run all the same.

    Args:
        bundle: Artifact and cases.
        devices: Where to run.
        run: How.
        progress: Called with (cases done, cases in all).
    """
    total = len(devices) * len(bundle.cases)
    records = []
    for position, device in enumerate(devices):
        record = None
        for record in _steps(bundle, device, run):
            progress(position * len(bundle.cases) + len(record.cases), total)
        assert record is not None
        records.append(record)
    return records


def record_path(folder: Path, name: str) -> Path:
    """Return where the record of the device ``name`` goes; any name gives a safe file name."""
    return folder / (re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") + ".json")


def _steps(bundle: Bundle, device: Device, run: Run) -> Iterator[Record]:
    """Yield the record as it grows; each is saved before it is given."""
    path = record_path(run.records, device.name) if run.records else None
    for record in _grow(bundle, device, run, _earlier(path, bundle, run)):
        if path is not None:
            record.save(path)
        yield record


def _grow(
    bundle: Bundle, device: Device, run: Run, done: dict[str, CaseResult]
) -> Iterator[Record]:
    record = _empty(bundle, DeviceInfo(name=device.name))
    try:
        _require_target(device, bundle)
        record = replace(record, device=device.describe(bundle.target))
        if len(done) == len(bundle.cases):
            yield replace(record, cases=tuple(done[case.name] for case in bundle.cases))
            return
        with device.open(bundle) as session:
            record = replace(record, device=session.info)
            for index, case in enumerate(bundle.cases):
                result = done.get(case.name)
                if result is None:
                    result = _case(bundle, index, session, run.effort)
                record = replace(record, cases=(*record.cases, result))
                yield record
    except DeviceError as error:
        left = len(bundle.cases) - len(record.cases)
        note = f" ({left} of {len(bundle.cases)} cases not run)" if record.cases else ""
        yield replace(record, error=f"{error}{note}")


def _require_target(device: Device, bundle: Bundle) -> None:
    if bundle.target not in device.targets:
        raise DeviceError(
            f"{device.name} runs {', '.join(sorted(device.targets))}; {bundle.artifact} is for "
            f"{bundle.target}: export the model to that target"
        )


def _case(bundle: Bundle, index: int, session: Session, effort: Effort) -> CaseResult:
    """Run one case; its failure is its result, the loss of the device is raised."""
    name = bundle.cases[index].name
    try:
        return _judge(bundle, index, session.execute(index, effort), effort)
    except DeviceLost:
        raise
    except DeviceError as error:
        logger.info("%s: %s", name, error)
        return CaseResult(name=name, status=Status.FAILED, error=str(error))


def _judge(bundle: Bundle, index: int, raw: RawRun, effort: Effort) -> CaseResult:
    """Compare what came out with the references.

    Raises:
        DeviceError: Another number of outputs than the references.
    """
    case, references = bundle.cases[index], bundle.references(index)
    if len(raw.outputs) != len(references):
        raise DeviceError(f"{len(raw.outputs)} outputs, the reference has {len(references)}")
    errors = tuple(
        measure(spec.name, value, reference)
        for spec, value, reference in zip(case.outputs, raw.outputs, references, strict=True)
    )
    wrong = [
        f"{e.name}: relative error {e.relative:.2e} is over {bundle.tolerance:.0e}"
        for e in errors
        if not e.relative <= bundle.tolerance
    ]
    digest = hashlib.sha256(b"".join(output.tobytes() for output in raw.outputs))
    is_language = bundle.task == "causal-lm"
    tokens = tokens_of(raw.outputs[0]) if is_language else ()
    return CaseResult(
        name=case.name,
        status=Status.WRONG if wrong else Status.OK,
        error="; ".join(wrong),
        outputs=errors,
        token_agreement=token_agreement(tokens, tokens_of(references[0])) if is_language else None,
        tokens=tokens,
        output_sha256=digest.hexdigest(),
        load_ms=raw.load_ms,
        latency=Latency.of(raw.latency_ms, warmup=effort.warmup),
        peak_nbytes=raw.peak_nbytes,
    )


def _empty(bundle: Bundle, info: DeviceInfo) -> Record:
    return Record(
        device=info,
        artifact=bundle.artifact,
        target=bundle.target,
        artifact_sha256=bundle.sha256,
        bundle_sha256=bundle.digest,
        file_nbytes=bundle.nbytes,
        budget=bundle.budget,
        tolerance=bundle.tolerance,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _earlier(path: Path | None, bundle: Bundle, run: Run) -> dict[str, CaseResult]:
    """Return the cases an earlier run of the same bundle finished, by name.

    Failed ones are run again. A record of another bundle, or one that is damaged, counts for
    nothing: it is about to be replaced.
    """
    if path is None or run.force or not path.exists():
        return {}
    try:
        record = load_record(path)
    except (SourceError, CorruptPack) as error:
        logger.warning("starting anew: %s", error)
        return {}
    if record.bundle_sha256 != bundle.digest:
        return {}
    return {case.name: case for case in record.cases if case.status is not Status.FAILED}
