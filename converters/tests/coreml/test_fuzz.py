"""The bench that damages packages: a whole one is read, and damaged ones end in errors of ours."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench/coreml_fuzz.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("coreml_fuzz", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_packages_end_in_errors_of_ours(bench, tmp_path):
    package = bench.make_package(tmp_path / "whole.mlpackage")
    assert bench.attempt(package) == "read"
    with bench.limited_memory():
        outcomes = Counter(outcome for _, outcome in bench.fuzz(package, 2000, seed=1))
    assert not [outcome for outcome in outcomes if outcome.startswith("!!")], outcomes
    assert outcomes["SourceError"] > 1000
    assert outcomes["read"] > 20
