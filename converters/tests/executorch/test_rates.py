"""How long the runtime takes for a product: what is timed, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from edgesparse_converters.executorch import EXPORTER, rates
from edgesparse_converters.executorch.rates import Layer, layer_of, measure_rates, rates_path

import edgesparse as es
from edgesparse.errors import UsageError
from edgesparse.exporters import Paced
from edgesparse.model import TensorInfo, TensorKind
from edgesparse.packed import FORMATS
from edgesparse.pattern import DENSE, Pattern
from edgesparse.planner.candidates import plan_tensor
from edgesparse.planner.choose import readable_by
from edgesparse.planner.types import TensorPlan

LINEAR = TensorInfo(
    name="up.weight", kind=TensorKind.LINEAR, shape=(512, 256), dtype="float16", compressible=True
)
TIED = replace(LINEAR, kind=TensorKind.EMBEDDING, aliases=("head.weight",))
EXPERT = replace(LINEAR, kind=TensorKind.EXPERT)


def planned(tensor: TensorInfo, bits: int, group_size: int, pattern: Pattern = DENSE) -> TensorPlan:
    rule = es.Rule(bits=bits, group_size=group_size, pattern=pattern)
    return plan_tensor(tensor, rule, readable_by("executorch"))


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing measured before counts."""
    monkeypatch.setenv("EDGESPARSE_CACHE", str(tmp_path))
    rates._known.cache_clear()
    yield
    rates._known.cache_clear()


@pytest.mark.parametrize(
    ("tensor", "bits", "group_size", "pattern", "lowering", "weight"),
    [
        (LINEAR, 4, 32, DENSE, "xnnpack", "dense4 g32"),
        (LINEAR, 4, 0, DENSE, "xnnpack", "dense4 g1024"),  # a row, however wide
        (LINEAR, 8, 0, DENSE, "xnnpack", "dense8 g1024"),
        (LINEAR, 8, 32, DENSE, "packed", "dense8 g32"),  # XNNPACK has no groups of 8 bits
        (LINEAR, 3, 32, DENSE, "packed", "dense3 g32"),
        (TIED, 4, 32, DENSE, "packed", "dense4 g32"),  # stored once, and read by our operators
        (EXPERT, 4, 32, DENSE, "packed", "dense4 g32"),
        (LINEAR, 4, 128, Pattern(sparsity=0.5), "packed", "bitmask4 g128 unstructured 0.5"),
        (LINEAR, 4, 128, Pattern(keep=2, of=4), "packed", "nm4 g128 2:4 0.5"),
        (LINEAR, 3, 128, Pattern(keep=2, of=4), "packed", "bitmask3 g128 unstructured 0.5"),
        (LINEAR, 4, 128, Pattern(sparsity=0.5, block=(16, 1)), "packed", "column16 g128 16x1 0.5"),
    ],
)
def test_what_is_timed_is_what_export_writes(
    tensor: TensorInfo, bits: int, group_size: int, pattern: Pattern, lowering: str, weight: str
) -> None:
    layer = layer_of(planned(tensor, bits, group_size, pattern), "int16")
    assert (layer.lowering, layer.weight) == (lowering, weight)


def test_what_xnnpack_cannot_take_is_timed_as_packed() -> None:
    """300 columns do not divide into groups of 32."""
    odd = replace(LINEAR, shape=(512, 300))
    assert layer_of(planned(odd, 4, 32), "int16").lowering == "packed"


def test_what_is_left_as_it_is_is_float32() -> None:
    entry = TensorPlan(tensor=LINEAR, rule=None, spec=None, nbytes=LINEAR.nbytes)
    assert layer_of(entry, "int8") == Layer("float32")
    assert EXPORTER.routed_as(entry) is None


def test_activations_are_those_of_the_export() -> None:
    """Only our operators have a choice; what has no integer product is timed in float32."""
    half = Pattern(sparsity=0.5)
    entries = {
        "packed int8": planned(LINEAR, 3, 32),
        "xnnpack": planned(LINEAR, 4, 32),
        "packed float32": planned(LINEAR, 16, 32, half),
    }
    for kernel, entry in entries.items():
        assert layer_of(entry, "int8").kernel == kernel
    assert layer_of(entries["packed int8"], "int16").kernel == "packed"  # as it was always named
    assert EXPORTER.routed_as(planned(EXPERT, 3, 32), activations="int8") == "int8"
    assert EXPORTER.routed_as(planned(EXPERT, 16, 32, half), activations="int8") == "float32"
    with pytest.raises(UsageError, match="activations 'int7': one of int8, int16, float32"):
        EXPORTER.product_rates([], activations="int7")


def test_the_runtime_is_timed_once(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the layers and half of them known: only the new ones are measured, and all are kept."""
    asked: list[str] = []

    def measured(layers: list[Layer]) -> list[float]:
        asked.extend(layer.weight for layer in layers)
        return [0.25 + len(asked)] * len(layers)

    monkeypatch.setattr(rates, "measure_rates", measured)
    entries = [planned(LINEAR, bits, 32) for bits in (4, 8, 4)]
    assert EXPORTER.product_rates(entries) == [2.25, 2.25, 2.25]
    assert EXPORTER.product_rates(entries[::-1]) == [2.25, 2.25, 2.25]
    assert asked == ["dense4 g32", "dense8 g32"]
    rates._known.cache_clear()  # another process
    assert EXPORTER.product_rates([*entries, planned(LINEAR, 2, 32)])[-1] == 3.25
    assert asked == ["dense4 g32", "dense8 g32", "dense2 g32"]


def test_nothing_is_kept_where_nothing_should_be(
    forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPARSE_CACHE", "")
    assert rates_path() is None


def test_a_damaged_file_is_measured_anew(
    forgotten: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rates, "measure_rates", lambda layers: [1.0] * len(layers))
    path = rates_path()
    assert path is not None
    path.write_text('{"version": 1, "rates": {"xnnpack": {"dense4 g32": -1}}}')
    with caplog.at_level("WARNING", logger="edgesparse"):
        assert EXPORTER.product_rates([planned(LINEAR, 4, 32)]) == [1.0]
    assert "measured rates cannot be read, so they are measured anew" in caplog.text
    assert json.loads(path.read_text())["rates"] == {"xnnpack": {"dense4 g32": 1.0}}


def test_through_the_runtime() -> None:
    """One of each lowering, exported and run; times are positive, and no more is said of them."""
    assert isinstance(EXPORTER, Paced)
    dense = FORMATS.get("dense4").spec(group_size=128, pattern=DENSE)
    masked = FORMATS.get("bitmask4").spec(group_size=128, pattern=Pattern(sparsity=0.5))
    layers = [
        Layer("float32"), Layer("xnnpack", dense), Layer("packed", masked),
        Layer("packed", masked, "int8"),
    ]  # fmt: skip
    found = measure_rates(layers)
    assert len(found) == 4
    assert all(0 < rate < 1e6 for rate in found)
