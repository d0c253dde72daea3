"""The emulated ARM processor: the same program, bit by bit the same behaviour, no word on speed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgesparse_converters.executorch.generation import generate
from edgesparse_device.bundle import Bundle
from edgesparse_device.device import Effort, device_named, devices_named
from edgesparse_device.devices.qemu import QemuDevice
from edgesparse_device.record import Status
from edgesparse_device.running import Run, record_path, run_bundle

import edgesparse as es
from edgesparse.errors import DeviceError, UsageError
from edgesparse.pattern import Pattern

Make = Callable[..., Bundle]
QUICK = Effort(warmup=1, runs=2, limit=60)
MODEL = Path(__file__).parents[2] / "examples" / "models" / "classics-4m"
RECIPE = es.Recipe(
    (
        es.Rule(kind="embedding", bits=4, group_size=128, quantizer="rtn"),
        es.Rule(kind="linear", bits=4, group_size=128, quantizer="rtn", method="magnitude",
                pattern=Pattern(sparsity=0.5)),
    )
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-aarch64-static") is None or shutil.which("aarch64-linux-gnu-g++") is None,
    reason="the ARM cross compiler or qemu is not installed",
)


def test_host_and_arm_give_the_same_tokens(make_bundle: Make, tmp_path: Path):
    host, arm = run_bundle(
        make_bundle(2), devices_named("host,qemu-arm64"), Run(effort=QUICK, records=tmp_path)
    )

    assert host.ok, host.verdict
    assert arm.ok, arm.verdict
    assert [case.tokens for case in arm.cases] == [case.tokens for case in host.cases]
    assert arm.device.abi == "aarch64"
    assert {"asimd", "asimddp"} <= set(arm.device.cpu_features)


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, half of its weights removed, as a program with a cache."""
    captured = es.load(MODEL)
    small = es.compress(captured, es.plan(captured, RECIPE))
    path = tmp_path_factory.mktemp("chat") / "chat.pte"
    return es.export(small, path=path, context=128, prefill=16).path


@pytest.mark.slow
def test_64_tokens_are_the_same_on_both_processors(chat: Path):
    """A prompt of 37 tokens, read 16 at a time, the last of them not whole."""
    prompt = np.random.default_rng(0).integers(0, 4096, 37).tolist()
    here, _ = generate(chat, prompt, tokens=64)
    there = QemuDevice("").generate(chat, prompt, tokens=64)
    assert there.tolist() == here.tolist()
    assert len(set(there.tolist())) > 8  # not one token over and over, whatever was computed


def test_generation_needs_a_program_with_a_cache(program: Path):
    with pytest.raises(DeviceError, match="prefill"):
        QemuDevice("").generate(program, [1, 2, 3], tokens=4)


def test_an_emulated_time_is_not_called_a_time(make_bundle: Make, tmp_path: Path):
    (record,) = run_bundle(
        make_bundle(), [device_named("qemu-arm64")], Run(effort=QUICK, records=tmp_path)
    )
    (case,) = json.loads(record_path(tmp_path, "qemu-arm64").read_text())["cases"]

    assert record.device.emulated
    assert "latency_ms" not in case
    assert "load_ms" not in case
    assert case["emulated_latency_ms"]["runs"] == 2


def test_a_small_processor_has_few_features(make_bundle: Make):
    (record,) = run_bundle(
        make_bundle(), [device_named("qemu-arm64:cortex-a53")], Run(effort=QUICK)
    )
    assert record.ok, record.verdict
    assert record.device.cpu_features == ("asimd",)


def test_an_operator_the_device_lacks_is_named(make_bundle: Make, program: Path, tmp_path: Path):
    strange = tmp_path / "strange.pte"
    strange.write_bytes(program.read_bytes().replace(b"aten::embedding", b"aten::embeddinX"))
    (record,) = run_bundle(
        make_bundle(artifact=strange), [device_named("qemu-arm64")], Run(effort=QUICK)
    )
    assert record.cases[0].status is Status.FAILED
    assert "no kernel for aten::embeddinX.out" in record.cases[0].error


def test_a_program_that_does_not_end_is_stopped(make_bundle: Make):
    effort = Effort(warmup=1, runs=1_000_000, limit=1)
    (record,) = run_bundle(make_bundle(), [device_named("qemu-arm64")], Run(effort=effort))
    assert "still running after 1 s" in record.cases[0].error


def test_inputs_of_another_shape_are_refused(make_bundle: Make, cases):
    (case,) = cases(1)
    case.inputs["ids"] = case.inputs["ids"][:, :7].copy()
    (record,) = run_bundle(
        make_bundle(cases=[case]), [device_named("qemu-arm64")], Run(effort=QUICK)
    )
    assert "the execution failed" in record.cases[0].error


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeviceError, match="apt install qemu-user-static"):
        device_named("qemu-arm64").describe()
    with pytest.raises(UsageError, match="expected a processor"):
        device_named("qemu-arm64:; reboot")
