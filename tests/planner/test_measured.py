"""Measured losses are kept for one model and one calibration, and a bad file costs only time."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import edgesparse
from edgesparse.calibrate import calibration_batches
from edgesparse.model import CapturedModel
from edgesparse.planner import sensitivity
from edgesparse.planner.measured import Measured, weights_digest

DATA = [torch.randn(8, 128, generator=torch.Generator().manual_seed(3))]


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    return edgesparse.load(model, example_inputs=torch.zeros(1, 128))


def measure(captured: CapturedModel, cache: Path, data: object = None) -> object:
    return sensitivity.measure_sensitivity(captured, data or DATA, cache=cache)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_second_time_nothing_is_run(
    captured: CapturedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(captured, tmp_path / "deep" / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("the model was run again")

    monkeypatch.setattr(sensitivity, "outputs", refuse)
    assert measure(captured, tmp_path / "deep" / "cache") == first
    assert len(files(tmp_path / "deep" / "cache")) == 1


def test_other_weights_and_other_inputs_have_files_of_their_own(
    captured: CapturedModel, tmp_path: Path
) -> None:
    other = {name: 1.001 * value for name, value in captured.weights().items()}
    measure(captured, tmp_path)
    measure(replace(captured, weights=lambda: other), tmp_path)
    measure(captured, tmp_path, [DATA[0] + 1])
    assert len(files(tmp_path)) == 3


def test_what_was_measured_before_an_interruption_is_kept(
    captured: CapturedModel, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity.measure_sensitivity(captured, DATA, cache=tmp_path, progress=interrupt)
    batches = calibration_batches(captured, DATA)
    known = Measured.of(tmp_path, captured, batches)
    rounded, removed = sensitivity._LOSSES
    assert known.knows("0.weight", (rounded, removed))
    assert not known.knows("2.weight", (rounded,))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1}', '{"version": 1, "losses": {"a": 3}}',
     '{"version": 1, "losses": {"0.weight": {"x": NaN}}}', '{"version": "1", "losses": {}}',
     '{"version": 1, "losses": {"0.weight": {"x": -1}}}', "\x00\xff", "[" * 100_000,
     '{"version": 1, "losses": {"0.weight": {"x": null}}}'],
    ids=range(11),
)  # fmt: skip
def test_a_damaged_file_is_reported_and_measured_anew(
    captured: CapturedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    first = measure(captured, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING, logger="edgesparse"):
        assert measure(captured, tmp_path) == first
    assert f"{path}: measured losses cannot be read, so they are measured anew" in caplog.text
    assert json.loads(path.read_text()) == json.loads(whole)


def test_an_older_way_of_measuring_is_measured_anew_silently(
    captured: CapturedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = measure(captured, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text('{"version": 0, "losses": {}}')
    assert measure(captured, tmp_path) == first
    assert not caplog.records


def test_a_place_that_cannot_be_written_costs_only_the_time(
    captured: CapturedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="edgesparse"):
        assert measure(captured, tmp_path / "file") == measure(captured, tmp_path / "other")
    assert "cannot be" in caplog.text
    assert files(tmp_path) == ["file", "other"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_digest_is_of_values_and_types(captured: CapturedModel, dtype: torch.dtype) -> None:
    weights = {name: value.to(dtype) for name, value in captured.weights().items()}
    once = replace(captured, weights=lambda: weights)
    assert weights_digest(once) == weights_digest(once)
    changed = {**weights, "2.bias": weights["2.bias"] + 1}
    assert weights_digest(once) != weights_digest(replace(captured, weights=lambda: changed))
