"""The host: a real runtime in real child processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, device_named
from edgesparse_device.record import Status, load_record
from edgesparse_device.running import Run, record_path, run_bundle

from edgesparse.budget import Budget

pytest.importorskip("executorch")
Make = Callable[..., Bundle]
QUICK = Effort(warmup=1, runs=3, limit=60)
HOST = device_named("host")


def test_a_program_gives_the_reference_and_a_record_says_so(make_bundle: Make, tmp_path: Path):
    bundle = make_bundle(2)
    (record,) = run_bundle(bundle, [HOST], Run(effort=QUICK, records=tmp_path))

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

    (record,) = run_bundle(bundle, [HOST], Run(effort=QUICK))

    assert [case.status for case in record.cases] == [Status.WRONG, Status.OK]
    assert "relative error" in record.cases[0].error
    assert not record.ok


def test_an_operator_the_runtime_lacks_is_named(make_bundle: Make, program: Path, tmp_path: Path):
    strange = tmp_path / "strange.pte"
    strange.write_bytes(program.read_bytes().replace(b"aten::embedding", b"aten::embeddinX"))
    (record,) = run_bundle(make_bundle(artifact=strange), [HOST], Run(effort=QUICK))

    assert record.cases[0].status is Status.FAILED
    assert "no kernel for aten::embeddinX.out" in record.cases[0].error


def test_a_file_that_is_no_program(make_bundle: Make, tmp_path: Path):
    garbage = tmp_path / "garbage.pte"
    garbage.write_bytes(bytes(range(256)) * 8)
    (record,) = run_bundle(make_bundle(artifact=garbage), [HOST], Run(effort=QUICK))
    assert "the program cannot be loaded" in record.cases[0].error


def test_inputs_of_another_shape_are_refused(make_bundle: Make, cases):
    short, right = cases(2)
    short.inputs["ids"] = short.inputs["ids"][:, :7].copy()
    (record,) = run_bundle(make_bundle(cases=[short, right]), [HOST], Run(effort=QUICK))

    assert [case.status for case in record.cases] == [Status.FAILED, Status.OK]
    assert "the execution failed" in record.cases[0].error


def test_a_program_that_does_not_end_is_stopped(make_bundle: Make):
    effort = Effort(warmup=1, runs=10_000_000, limit=1)
    (record,) = run_bundle(make_bundle(), [HOST], Run(effort=effort))
    assert "still running after 1 s" in record.cases[0].error


def test_a_crash_is_a_result_that_names_the_signal(make_bundle: Make, tmp_path: Path):
    before = set(children_of_templates())

    def crash() -> None:
        while not (new := set(children_of_templates()) - before):
            time.sleep(0.01)
        for pid in new:
            os.kill(pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash)
    thread.start()
    effort = Effort(warmup=1, runs=10_000_000, limit=60)
    (crashed,) = run_bundle(make_bundle(), [HOST], Run(effort=effort, records=tmp_path))
    thread.join()
    assert crashed.cases[0].status is Status.FAILED
    assert "SIGSEGV" in crashed.cases[0].error

    (again,) = run_bundle(make_bundle(), [HOST], Run(effort=QUICK, records=tmp_path))
    assert again.ok, again.verdict  # a failed case is run again


def children_of_templates() -> list[int]:
    """Processes that this process's children started."""
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    templates = [pid for path in own for pid in path.read_text().split()]
    lists = [Path(f"/proc/{pid}/task/{pid}/children") for pid in templates]
    return [int(pid) for path in lists if path.exists() for pid in path.read_text().split()]


def test_finished_cases_are_not_run_again(make_bundle: Make, tmp_path: Path):
    run = Run(effort=QUICK, records=tmp_path)
    (first,) = run_bundle(make_bundle(2), [HOST], run)
    (second,) = run_bundle(make_bundle(2), [HOST], run)
    assert second.cases == first.cases

    (forced,) = run_bundle(make_bundle(2), [HOST], replace(run, force=True))
    assert forced.cases[0].latency != first.cases[0].latency
    (other,) = run_bundle(make_bundle(2, tolerance=2e-5), [HOST], run)
    assert other.cases[0].latency != forced.cases[0].latency  # another bundle, another record


def test_a_broken_budget_is_said(make_bundle: Make):
    (record,) = run_bundle(make_bundle(budget=Budget(file="1kB")), [HOST], Run(effort=QUICK))
    assert record.cases[0].status is Status.OK
    assert not record.ok
    assert "over the budget of 1.00 kB" in record.verdict
