"""A short run of ``bench/fuzz_readers.py``: no reader does anything but say no."""

from __future__ import annotations

import runpy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "fuzz_readers.py"
COUNTS = {"safetensors": 500, "manifest": 300, "pack": 200, "deflated": 200, "config": 40,
          "model": 40, "bin": 100, "pt2": 40,
          "recipe": 300, "tokenizer": 100, "journal": 60, "plan": 100, "npz": 300, "search": 300,
          "losses": 300, "pte": 15, "ptd": 15, "bpte": 200, "mlmodel": 100, "mlweights": 100,
          "mlmanifest": 100,
          "record": 200, "bundle": 100, "checkpoint": 100}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH.parent))  # as for a script
        script = runpy.run_path(str(BENCH))
    previous = {alarm: signal.signal(alarm, script["_too_slow"]) for alarm in script["ALARMS"]}
    script["every"] = script["readers"](tmp_path_factory.mktemp("fuzz"))
    yield script
    for alarm, handler in previous.items():
        signal.signal(alarm, handler)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COUNTS)
def test_readers_refuse_or_read(name: str, bench: dict[str, Any]) -> None:
    outcome = bench["fuzz"](name, *bench["every"][name], count=COUNTS[name], seed=1)
    assert outcome.findings == []
    assert outcome.tried == COUNTS[name]
    assert outcome.refused > outcome.tried // 4


def test_every_reader_of_the_bench_is_run_here(bench: dict[str, Any]) -> None:
    assert set(bench["every"]) == set(COUNTS)


def test_a_reader_that_crashes_hangs_or_swells_is_found(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(content: bytes) -> None:
        raise IndexError("from inside a reader")

    def hangs(content: bytes) -> None:
        signal.raise_signal(signal.SIGALRM)

    def swells(content: bytes) -> int:
        return len(bytearray(1) * (300 << 20))

    for reader, message in ((crashes, "IndexError"), (hangs, "TooSlow"), (swells, "of memory")):
        outcome = bench["fuzz"]("test", b"{}", reader, count=1, seed=0)
        assert message in outcome.findings[0]
