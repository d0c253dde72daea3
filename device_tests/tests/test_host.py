"""The host: a real runtime in real child processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, device_named
from edgesparse_device.record import Status, load_record
from edgesparse_device.running import Run, record_path, run_bundle

pytest.importorskip("executorch")
Make = Callable[..., Bundle]
QUICK = Effort(warmup=1, runs=3, limit=60)


def test_a_program_gives_the_reference_and_a_record_says_so(make_bundle: Make, tmp_path: Path):
    bundle = make_bundle(2)
    (record,) = run_bundle(bundle, [device_named("host")], Run(effort=QUICK, records=tmp_path))

    assert record.ok, record.verdict
    assert record.artifact_sha256 == bundle.sha256
    assert record.file_nbytes == bundle.artifact_path.stat().st_size
    for case in record.cases:
        assert case.status is Status.OK
        assert case.relative < 1e-5
        assert case.token_agreement == 1.0
        assert len(case.tokens) == 16
        assert case.latency is not None
        assert case.latency.runs == 3
        assert case.latency.p50 <= case.latency.p90 <= case.latency.p99
    saved = record_path(tmp_path, "host")
    assert load_record(saved) == record
    text = json.loads(saved.read_text())
    assert text["ok"] is True
    assert text["device"]["tools"]["executorch"]
    assert text["cases"][0]["latency_ms"]["runs"] == 3


def test_wrong_numbers_are_a_result_and_not_the_end(make_bundle: Make, cases):
    right, wrong = cases(2)
    wrong.outputs["logits"][0, 3] += 5
    bundle = make_bundle(cases=[wrong, right])

    (record,) = run_bundle(bundle, [device_named("host")], Run(effort=QUICK))

    assert [case.status for case in record.cases] == [Status.WRONG, Status.OK]
    assert "relative error" in record.cases[0].error
    assert not record.ok
