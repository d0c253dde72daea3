"""Records and what changed between two of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from edgesparse_device.comparing import Tolerance, agreement, compare
from edgesparse_device.measure import OutputError
from edgesparse_device.record import CaseResult, DeviceInfo, Latency, Record, Status, load_record

from edgesparse.budget import Budget
from edgesparse.errors import EdgesparseError, SourceError


def result(name: str = "case", relative: float = 1e-3, p50: float = 2.0) -> CaseResult:
    return CaseResult(
        name=name,
        status=Status.OK,
        outputs=(OutputError(name="y", max_abs=0.1, relative=relative, cosine=1.0, top1=1.0),),
        token_agreement=1.0,
        tokens=(1, 2, 3, 4),
        output_sha256="a" * 64,
        load_ms=10.0,
        latency=Latency(p50=p50, p90=3.0, p99=4.0, runs=10, warmup=2),
        peak_nbytes=5_000_000,
    )


def record(*cases: CaseResult, emulated: bool = False, name: str = "host") -> Record:
    return Record(
        device=DeviceInfo(name=name, cpu="one", cpu_features=("fma",), emulated=emulated),
        artifact="m.pte",
        target="executorch",
        artifact_sha256="b" * 64,
        bundle_sha256="c" * 64,
        file_nbytes=1_000_000,
        budget=Budget(file="2MB", peak="6MB"),
        tolerance=0.01,
        started="2026-01-01T00:00:00+00:00",
        cases=cases or (result(),),
    )


FAILED = CaseResult(name="case", status=Status.FAILED, error="the runner crashed with SIGSEGV")
FAR = replace(
    result(relative=math.inf),
    status=Status.WRONG,
    outputs=(OutputError(name="y", max_abs=math.inf, relative=math.inf, cosine=0.0, top1=None),),
)


@pytest.mark.parametrize("cases", [(result(),), (FAILED,), (FAR,), (result("a"), result("b"))])
@pytest.mark.parametrize("emulated", [False, True])
def test_what_is_saved_is_read(cases: tuple[CaseResult, ...], emulated: bool, tmp_path: Path):
    saved = record(*cases, emulated=emulated)
    saved.save(tmp_path / "r.json")
    assert load_record(tmp_path / "r.json") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_the_verdict():
    assert record().ok
    assert record().verdict == "all 1 cases right"
    assert "SIGSEGV" in record(FAILED).verdict
    assert not replace(record(), error="went away").ok
    assert not replace(record(), cases=()).ok
    small = replace(record(), budget=Budget(peak="4MB"))
    assert small.broken_limits == ("peak memory 5.00 MB is over the budget of 4.00 MB",)
    assert replace(small, device=replace(small.device, emulated=True)).ok


@pytest.mark.parametrize(
    "change",
    [{"kind": "other"}, {"format": 2}, {"cases": 3}, {"device": {}}, {"budget": {"disk": 1}}],
)
def test_a_record_that_makes_no_sense(change: dict[str, object], tmp_path: Path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record().to_json() | change))
    with pytest.raises(EdgesparseError):
        load_record(path)


def test_no_record_there(tmp_path: Path):
    with pytest.raises(SourceError):
        load_record(tmp_path / "none.json")


def worse(before: Record, after: Record, **limits: float) -> list[str]:
    found = compare(before, after, Tolerance(**limits))
    return [change.what for change in found if change.worse]


def test_nothing_changed():
    assert compare(record(), record()) == []


def test_what_counts_as_worse():
    assert worse(record(result(p50=2.0)), record(result(p50=2.3))) == []
    assert worse(record(result(p50=2.0)), record(result(p50=2.5))) == ["median time"]
    assert worse(record(result(p50=2.5)), record(result(p50=2.0))) == []
    assert worse(record(), record(result(relative=3e-3))) == ["relative error"]
    assert worse(record(), record(result(relative=3e-3)), error=0.01) == []
    assert worse(record(), record(FAILED)) == ["result"]
    assert worse(record(FAILED), record()) == []
    assert worse(record(result("a"), result("b")), record(result("a"))) == ["result"]
    assert worse(record(), replace(record(), error="went away")) == ["run"]
    bigger = replace(record(), artifact_sha256="d" * 64, file_nbytes=1_100_000)
    assert worse(record(), bigger) == ["file"]
    assert worse(record(), record(replace(result(), peak_nbytes=6_000_000))) == ["peak memory"]
    fewer = replace(result(), token_agreement=0.75, tokens=(1, 2, 3, 9))
    assert worse(record(), record(fewer)) == ["token agreement"]
    assert worse(record(), record(fewer), tokens=0.5) == []
    assert worse(record(), record(fewer), tokens=0.5, same_tokens=True) == ["tokens"]


def test_emulated_times_are_not_compared():
    slow = record(replace(result(p50=900.0), peak_nbytes=90_000_000), emulated=True)
    assert compare(record(), slow) == []
    assert compare(slow, replace(slow, cases=(result(),))) == []


def test_agreement_of_devices():
    other = record(
        replace(result(), output_sha256="e" * 64, tokens=(1, 2, 3, 9)), name="qemu-arm64"
    )
    assert list(agreement([record(), other])) == [
        "host and qemu-arm64: 0 of 1 cases equal bit for bit, 3 of 4 tokens the same"
    ]
    assert list(agreement([record()])) == []
    assert list(agreement([record(), record(FAILED)])) == []
