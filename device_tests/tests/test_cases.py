"""The bundled language model and keyword spotter, on this host and on an emulated ARM processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from edgesparse_device.bundle import open_bundle
from edgesparse_device.device import Effort, device_named, devices_named
from edgesparse_device.running import Run, run_bundle

CASES = Path(__file__).parents[1] / "cases"
QUICK = Run(effort=Effort(warmup=1, runs=1, limit=100))

pytest.importorskip("executorch")
needs_arm = pytest.mark.skipif(
    shutil.which("qemu-aarch64-static") is None or shutil.which("aarch64-linux-gnu-g++") is None,
    reason="the ARM cross compiler or qemu is not installed",
)
needs_compiler = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None,
    reason="cmake and a C++ compiler build the packed operators",
)


@needs_arm
@needs_compiler
@pytest.mark.parametrize("name", ["classics", "keywords"])
def test_host_and_arm_agree(name: str):
    bundle = open_bundle(CASES / name)
    host, arm = run_bundle(bundle, devices_named("host,qemu-arm64"), QUICK)

    assert host.ok, host.verdict
    assert arm.ok, arm.verdict
    for here, there in zip(host.cases, arm.cases, strict=True):
        assert here.tokens == there.tokens
        assert here.outputs[0].top1 == there.outputs[0].top1 == 1.0


@needs_arm
@needs_compiler
def test_an_old_arm_processor_without_dot_products_agrees():
    (record,) = run_bundle(
        open_bundle(CASES / "keywords"), [device_named("qemu-arm64:cortex-a53")], QUICK
    )
    assert record.ok, record.verdict
    assert "asimddp" not in record.device.cpu_features
