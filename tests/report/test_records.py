"""Device records in the report: read as the device tests write them, no emulated time shown."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from edgesparse_device.measure import OutputError
from edgesparse_device.record import CaseResult, DeviceInfo, Latency, Record, Status

from edgesparse.budget import Budget
from edgesparse.errors import CorruptPack, SourceError
from edgesparse.report.records import read_run, require_same_file

OUTPUT = OutputError(name="logits", max_abs=0.01, relative=2e-4, cosine=1.0, top1=1.0)
CASE = CaseResult(
    name="000",
    status=Status.OK,
    outputs=(OUTPUT,),
    token_agreement=0.97,
    tokens=(1, 2),
    load_ms=12.5,
    latency=Latency(p50=3.0, p90=3.5, p99=4.25, runs=20, warmup=3),
    peak_nbytes=9_000_000,
)
RECORD = Record(
    device=DeviceInfo(name="host", abi="x86_64", cpu="a processor"),
    artifact="model.pte",
    target="executorch",
    artifact_sha256=hashlib.sha256(b"the file").hexdigest(),
    bundle_sha256="0" * 64,
    file_nbytes=8,
    budget=Budget(peak="10MB"),
    tolerance=1e-3,
    started="2026-01-01T00:00:00+00:00",
    cases=(CASE, replace(CASE, name="001", latency=replace(CASE.latency, p50=2.0))),
)


def saved(record: Record, path: Path) -> Path:
    record.save(path)
    return path


def test_a_record_in_one_line(tmp_path: Path) -> None:
    run = read_run(saved(RECORD, tmp_path / "host.json"))
    assert run.device == "host · x86_64 · a processor"
    assert (run.cases, run.error) == ("2 of 2 right", "2.0e-04, 97.0 % of tokens")
    assert run.times == "load 12.5; 3 / 3.5 / 4.25 ms"
    assert run.memory == "9.00 MB"
    assert run.ok


def test_an_emulated_time_is_not_shown(tmp_path: Path) -> None:
    device = replace(RECORD.device, name="qemu-arm64", abi="aarch64", emulated=True)
    run = read_run(saved(replace(RECORD, device=device), tmp_path / "qemu.json"))
    assert "emulated" in run.device
    assert run.times == "emulated: not a speed"


def test_where_operations_run_is_told_if_the_device_does(tmp_path: Path) -> None:
    device = replace(RECORD.device, placement={"Neural Engine": 12, "CPU": 3})
    run = read_run(saved(replace(RECORD, device=device), tmp_path / "mac.json"))
    assert run.times.endswith("4.25 ms; 12 on the Neural Engine; 3 on the CPU")


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    failed = CaseResult(name="000", status=Status.FAILED, error="the runner was ended by SIGSEGV")
    run = read_run(saved(replace(RECORD, cases=(failed,)), tmp_path / "host.json"))
    assert not run.ok
    assert (run.cases, run.error, run.times, run.memory) == ("0 of 1 right", "–", "–", "–")
    assert "SIGSEGV" in run.verdict


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    artifact = tmp_path / "model.pte"
    run = read_run(saved(RECORD, tmp_path / "host.json"))
    artifact.write_bytes(b"the file")
    require_same_file([run], [artifact])
    artifact.write_bytes(b"another")
    with pytest.raises(SourceError, match=r"ran another model\.pte"):
        require_same_file([run], [artifact])


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    with pytest.raises(SourceError, match="No such file"):
        read_run(path)
    path.write_text("{}")
    with pytest.raises(SourceError, match="edgesparse device run"):
        read_run(path)
    value = RECORD.to_json()
    for key in ("device", "cases", "peak_nbytes", "verdict"):
        path.write_text(json.dumps({k: v for k, v in value.items() if k != key}))
        with pytest.raises(CorruptPack, match=key):
            read_run(path)
