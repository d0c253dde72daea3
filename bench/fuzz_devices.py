"""Valid files of device tests and of interrupted recoveries, and what reads their mutations.

``fuzz_readers.py`` runs them with its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from edgesparse_device.bundle import MANIFEST, open_bundle
from edgesparse_device.making import CaseArrays, write_bundle
from edgesparse_device.measure import OutputError
from edgesparse_device.record import CaseResult, DeviceInfo, Latency, Record, Status, load_record
from torch import nn

from edgesparse.budget import Budget
from edgesparse.recovery.checkpoint import Checkpoint
from edgesparse.recovery.progress import Best, Position
from edgesparse.report.records import read_run

Reader = tuple[bytes, Callable[[bytes], object]]


def record_reader(path: Path) -> Reader:
    """Return a record of one case, and the two that read it: to compare and to report."""
    result = CaseResult(
        name="one", status=Status.OK,
        outputs=(OutputError(name="y", max_abs=0.1, relative=1e-3, cosine=1.0, top1=1.0),),
        token_agreement=1.0, tokens=(1, 2), output_sha256="a" * 64, load_ms=10.0,
        latency=Latency(p50=1.0, p90=3.0, p99=4.0, runs=10, warmup=2), peak_nbytes=5_000_000,
    )  # fmt: skip
    record = Record(
        device=DeviceInfo(name="host", cpu="one", cpu_features=("fma",), emulated=False),
        artifact="m.pte", target="executorch", artifact_sha256="b" * 64, bundle_sha256="c" * 64,
        file_nbytes=1_000_000, budget=Budget(file="2MB"), tolerance=0.01,
        started="2026-01-01T00:00:00+00:00", cases=(result,),
    )  # fmt: skip
    record.save(path)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        read_run(path)
        found = load_record(path)
        found.to_json()

    return path.read_bytes(), read


def bundle_reader(folder: Path) -> Reader:
    """Return a bundle's manifest, and what opens it and reads its inputs."""
    artifact = folder.with_suffix(".pte")
    artifact.write_bytes(b"whatever a program is")
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    case = CaseArrays(name="one", inputs=arrays, outputs={"y": np.ones(4, np.float32)})
    manifest = write_bundle(folder, artifact, (case,), target="executorch").path / MANIFEST

    def read(content: bytes) -> None:
        manifest.write_bytes(content)
        opened = open_bundle(folder)
        for index in range(len(opened.cases)):
            opened.inputs(index)
            opened.references(index)

    return manifest.read_bytes(), read


def checkpoint_reader(path: Path) -> Reader:
    """Return the state of a recovery, and what goes on from it."""
    student = nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(student.parameters())
    student(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    best = Best(patience=3)
    best.see(1.0, student)
    Checkpoint(path).write(student, optimizer, Position(step=1), best)

    def read(content: bytes) -> None:
        path.write_bytes(content)
        Checkpoint(path).restore(student, optimizer, Position(), Best(patience=3))

    return path.read_bytes(), read
