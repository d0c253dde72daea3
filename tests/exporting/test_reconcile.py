"""Predicted sizes beside real ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import edgesparse as es
from edgesparse.exporting import EXPORTERS, Artifact
from edgesparse.reconcile import Compared, reconcile

MODEL = Path(__file__).parents[2] / "examples/models/classics-4m"


def test_near_enough_is_within_what_is_allowed() -> None:
    row = Compared(name="file", predicted=1_000_000, found=1_040_000, allowed=50_000)
    assert row.ok
    assert not replace(row, found=1_060_000).ok
    assert not replace(row, found=940_000).ok
    assert str(row) == "file 1.04 MB, predicted 1.00 MB (+4.0%)"


class Weighing:
    """A target whose files are predicted as a million bytes, and take two to run."""

    suffix = ".weighed"

    def predict_nbytes(self, plan: object) -> int:
        return 1_000_000

    def measure_peak(self, path: Path) -> int | None:
        return 2_000_000


def test_a_target_that_can_is_asked_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORTERS._loaded, "executorch", Weighing())  # type: ignore[arg-type]
    captured = es.load(MODEL)
    plan = es.plan(captured, es.Recipe((es.Rule(bits=4, quantizer="rtn"),)))
    compressed = es.CompressedModel(captured=captured, packed={}, kept={}, plan=plan)
    artifact = Artifact(path=MODEL, target="executorch", nbytes=1_004_000, tool_versions={})
    (file,) = reconcile(compressed, artifact)
    assert file.ok
    file, peak = reconcile(compressed, artifact, memory=True)
    assert (peak.name, peak.found) == ("peak memory", 2_000_000)
    assert not peak.ok  # the runtime alone takes more than that
