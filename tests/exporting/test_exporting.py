"""What ``export`` and ``validate`` owe for every target, shown with a target of two lines."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesparse import exporters
from edgesparse.budget import Budget
from edgesparse.errors import (
    BudgetExceeded,
    FormatError,
    MissingDependency,
    OutputExists,
    SourceError,
    Unsupported,
    UsageError,
)
from edgesparse.exporting import (
    EXPORTERS,
    Artifact,
    LayerCheck,
    OutputCheck,
    Verdict,
    check_output,
    compare_output,
    export,
    inspect,
    nbytes_on_disk,
    suffixes,
    target_of,
    validate,
)
from edgesparse.model import CapturedModel, CompressedModel, Source
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.pattern import DENSE
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.registry import Registry
from edgesparse.verdict import worst_outputs

NBYTES = 1000


class Toy:
    """A target whose file is a thousand zeros."""

    suffix = ".toy"
    accepts = frozenset({"dense4"})
    packages: tuple[str, ...] = ()
    extra = "toy"
    fails: BaseException | None = None

    def export(self, compressed: CompressedModel, path: Path, *, colour: str = "") -> Artifact:
        path.write_bytes(bytes(NBYTES))
        if self.fails is not None:
            raise self.fails
        return Artifact(path=path, target="toy", nbytes=NBYTES, tool_versions={"toy": "1"})

    def validate(self, path: Path, compressed: CompressedModel, **options: Any) -> Verdict:
        return Verdict(path=path, target="toy", layers=(), outputs=())

    def predict_nbytes(self, plan: Plan) -> int:
        return NBYTES

    def inspect(self, path: Path) -> Mapping[str, Any]:
        return {"nbytes": path.stat().st_size}

    def run(self, path: Path, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return inputs


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    registry: Registry[Any] = Registry("exporter", {})
    exporter = Toy()
    registry.register("toy", exporter)
    monkeypatch.setattr(exporters, "EXPORTERS", registry)
    return exporter


class Half:
    """A row somebody began to write."""

    suffix = ".half"


def test_a_malformed_row_breaks_nothing_but_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"broken": "edgesparse_no_such_module:EXPORTER", "other": "edgesparse.errors:Nothing"}
    registry: Registry[Any] = Registry("exporter", rows)
    registry.register("toy", Toy())
    registry.register("half", Half())
    monkeypatch.setattr(exporters, "EXPORTERS", registry)
    with caplog.at_level("WARNING", logger="edgesparse"):
        assert suffixes() == {".toy": "toy", ".half": "half"}
    assert "'broken' is left out: ModuleNotFoundError" in caplog.text
    assert validate(export(model(), path=tmp_path / "m.toy"), model()).target == "toy"
    for name in rows:
        with pytest.raises(UsageError, match=f"exporter '{name}' cannot be loaded"):
            export(model(), name, tmp_path / "m.none")
    with pytest.raises(UsageError, match="'half' has no accepts, packages"):
        export(model(), path=tmp_path / "m.half")


def model(*, budget: Budget | None = None, target: str | None = None) -> CompressedModel:
    def nothing() -> Any:
        raise AssertionError("exporting by registry builds no module")

    captured = CapturedModel(
        source=Source(kind="module", location="toy"), tensors=(), example_inputs={},
        skeleton=nothing, weights=nothing,
    )  # fmt: skip
    plan = Plan(tensors=(), nbytes=0, budget=budget or Budget(), target=target)
    return CompressedModel(captured=captured, packed={}, kept={}, plan=plan)


class Timed(Toy):
    """A target that plans time, with one option that its times depend on."""

    def export(
        self, compressed: CompressedModel, path: Path, *, colour: str = "", pace: str = "slow"
    ) -> Artifact:
        return replace(super().export(compressed, path), notes=(f"written {pace} {colour}",))

    def product_rates(self, entries: Sequence[TensorPlan], *, pace: str = "slow") -> list[float]:
        return [1.0] * len(entries)

    def routed_as(self, entry: TensorPlan, *, pace: str = "slow") -> None:
        return None


@pytest.mark.parametrize(
    ("target", "timed", "planned", "given", "notes"),
    [
        ("timed", True, {}, {}, ("written slow ",)),
        ("timed", True, {"pace": "fast"}, {}, ("pace=fast, as planned", "written fast ")),
        ("timed", True, {"pace": "fast"}, {"pace": "fast"}, ("written fast ",)),
        ("timed", False, {"pace": "fast"}, {"pace": "slow"},
         ("pace=slow, where the plan counted fast", "written slow ")),
        ("timed", True, {}, {"pace": "fast", "colour": "red"},
         ("pace=fast, where the plan counted slow", "written fast red")),
        ("timed", False, {}, {"pace": "fast"}, ("written fast ",)),  # nothing was timed
        ("other", True, {"pace": "fast"}, {}, ("written slow ",)),
    ],
)  # fmt: skip
def test_the_options_of_the_plan_are_taken_or_the_difference_is_said(
    toy: Toy,
    tmp_path: Path,
    target: str,
    timed: bool,
    planned: dict[str, str],
    given: dict[str, str],
    notes: tuple[str, ...],
) -> None:
    exporters.EXPORTERS.register("timed", Timed())
    made = model(target=target)
    plan = replace(made.plan, options=planned, latency_of=target if timed else None)
    artifact = export(replace(made, plan=plan), "timed", tmp_path / "a.toy", **given)
    assert artifact.notes == notes


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_target_is_inferred_from_the_ending(toy: Toy, tmp_path: Path) -> None:
    artifact = export(model(), path=tmp_path / "a.toy")
    assert (artifact.target, artifact.path) == ("toy", tmp_path / "a.toy")
    assert files(tmp_path) == ["a.toy"]
    assert inspect(tmp_path / "a.toy") == {"nbytes": NBYTES}


def test_an_unknown_ending_lists_the_known_ones_and_the_nearest(toy: Toy) -> None:
    with pytest.raises(UsageError, match=r"known: \.toy \(toy\); did you mean \.toy\?"):
        target_of(Path("model.toyy"))


def test_an_ending_that_contradicts_the_target_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a file for toy ends in \.toy"):
        export(model(), "toy", tmp_path / "model.pte")
    assert files(tmp_path) == []


def test_existing_output_needs_force(toy: Toy, tmp_path: Path) -> None:
    path = tmp_path / "a.toy"
    path.write_text("precious")
    with pytest.raises(OutputExists, match="--force"):
        check_output(None, path, force=False)
    with pytest.raises(OutputExists):
        export(model(), path=path)
    assert path.read_text() == "precious"
    export(model(), path=path, force=True)
    assert path.stat().st_size == NBYTES


def test_force_replaces_a_package_directory_whole(toy: Toy, tmp_path: Path) -> None:
    package = tmp_path / "a.toy"
    (package / "inside").mkdir(parents=True)
    (package / "inside" / "weights").write_bytes(b"12345")
    assert nbytes_on_disk(package) == 5
    export(model(), path=package, force=True)
    assert package.is_file()
    assert files(tmp_path) == ["a.toy"]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failed_export_leaves_what_was_there(
    toy: Toy, tmp_path: Path, failure: BaseException
) -> None:
    path = tmp_path / "a.toy"
    path.write_text("precious")
    toy.fails = failure
    with pytest.raises(type(failure)):
        export(model(), path=path, force=True)
    assert path.read_text() == "precious"
    assert files(tmp_path) == ["a.toy"]


def test_a_failed_export_takes_the_folders_it_made_along(toy: Toy, tmp_path: Path) -> None:
    toy.fails = RuntimeError("broken")
    with pytest.raises(RuntimeError):
        export(model(), path=tmp_path / "new" / "folders" / "a.toy")
    assert files(tmp_path) == []
    toy.fails = None
    export(model(), path=tmp_path / "new" / "folders" / "a.toy")
    assert files(tmp_path / "new" / "folders") == ["a.toy"]


def test_room_is_asked_for_before_the_file_is_written(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=NBYTES - 1))
    toy.fails = AssertionError("it was begun")
    with pytest.raises(FormatError, match=r"1\.00 kB are needed, 999 B are free"):
        export(model(), path=tmp_path / "new" / "a.toy")
    assert files(tmp_path) == []


def test_a_disk_that_fills_up_is_an_error_of_ours_and_leaves_what_was_there(
    toy: Toy, tmp_path: Path
) -> None:
    path = tmp_path / "a.toy"
    path.write_text("precious")
    toy.fails = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FormatError, match=r"cannot write .*a\.toy: No space left on device"):
        export(model(), path=path, force=True)
    assert path.read_text() == "precious"
    toy.fails = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".a"))
    with pytest.raises(FormatError, match=r"cannot write .*a\.toy: Permission denied"):
        export(model(), path=path, force=True)
    # Those are defects, and look like it.
    for defect in (
        OSError(errno.EBADF, "Bad file descriptor"),
        PermissionError(errno.EACCES, "Permission denied", "/some/tool"),
    ):
        toy.fails = defect
        with pytest.raises(OSError, match=str(defect.strerror)):
            export(model(), path=path, force=True)
    assert files(tmp_path) == ["a.toy"]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[bool, bool]] = []
    fsync, path = os.fsync, tmp_path / "a.toy"

    def watched(descriptor: int) -> None:
        flushed.append((stat.S_ISREG(os.fstat(descriptor).st_mode), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    export(model(), path=path)
    assert flushed == [(True, False), (False, True)]  # the file, then the name


@pytest.mark.parametrize(
    ("given", "planned", "target", "fits"),
    [
        (None, None, None, True),
        (Budget(file=NBYTES), None, None, True),
        (Budget(file=NBYTES - 1), None, None, False),
        (None, Budget(file=NBYTES - 1), "toy", False),
        # Planned for the packed weights alone: says nothing about this file.
        (None, Budget(file=NBYTES - 1), None, True),
        (Budget(file=NBYTES), Budget(file=1), "toy", True),
    ],
)
def test_the_written_file_is_held_against_the_budget(
    toy: Toy,
    tmp_path: Path,
    given: Budget | None,
    planned: Budget | None,
    target: str | None,
    fits: bool,
) -> None:
    small = model(budget=planned, target=target)
    if fits:
        export(small, path=tmp_path / "a.toy", budget=given)
        return
    with pytest.raises(BudgetExceeded, match=r"file 1\.00 kB is over the budget of 999 B"):
        export(small, path=tmp_path / "a.toy", budget=given)
    assert files(tmp_path) == []
    with pytest.raises(BudgetExceeded, match="kept at"):
        export(small, path=tmp_path / "a.toy", budget=given, keep=True)
    assert files(tmp_path) == ["a.toy"]


def test_a_format_the_target_does_not_know_is_refused_by_layer(toy: Toy, tmp_path: Path) -> None:
    spec = FormatSpec(
        name="bitmask3", version=1, bits=3, group_size=32, pattern=DENSE, scale_dtype="float16"
    )
    packed = PackedTensor(spec=spec, shape=(1, 1), buffers={"codes": np.zeros(64, np.uint8)})
    with pytest.raises(Unsupported, match=r"toy cannot hold up \(bitmask3\); it holds dense4"):
        export(replace(model(), packed={"up": packed}), path=tmp_path / "a.toy")
    assert files(tmp_path) == []


def test_a_missing_package_names_the_extra(toy: Toy, tmp_path: Path) -> None:
    toy.packages = ("surely_not_installed",)
    with pytest.raises(MissingDependency, match=r"pip install 'edgesparse\[toy\]'"):
        export(model(), path=tmp_path / "a.toy")
    assert files(tmp_path) == []


def test_an_option_the_target_does_not_have_is_answered_with_the_nearest(
    toy: Toy, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no option 'color'; known: colour; did you mean 'colour'"):
        export(model(), path=tmp_path / "a.toy", color="red")
    export(model(), path=tmp_path / "a.toy", colour="red")


def test_validating_nothing_is_no_proof(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        validate(tmp_path / "a.toy", model())
    artifact = export(model(), path=tmp_path / "a.toy")
    assert not validate(artifact, model()).ok


def test_a_verdict_needs_every_layer_and_every_output() -> None:
    equal = LayerCheck(name="up", lowering="exact", max_abs_error=0.0)
    unread = LayerCheck(name="down", lowering="opaque", max_abs_error=float("nan"))
    near = OutputCheck(name="logits", max_abs_error=0.1, relative_error=0.01, tolerance=0.02)
    far = replace(near, relative_error=0.03)
    verdict = Verdict(path=Path("a.toy"), target="toy", layers=(equal,), outputs=(near,))
    assert verdict.ok
    assert equal.equal
    assert not replace(verdict, outputs=(far,)).ok
    assert not replace(verdict, layers=(equal, unread)).ok
    assert "outside tolerance: down" in str(replace(verdict, layers=(equal, unread)))
    assert verdict.to_json()["layers"][0]["equal"] is True


@pytest.mark.parametrize(
    ("value", "reference", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),  # |0.5| / |(3, 4)|
        ([0.0], [0.0], 0.0),
        ([1.0, 2.0], [1.0], np.inf),
        ([np.nan], [1.0], np.nan),
    ],
)
def test_outputs_are_compared_in_the_two_norm(
    value: list[float], reference: list[float], error: float
) -> None:
    check = compare_output("y", np.array(value), np.array(reference), tolerance=0.05)
    np.testing.assert_allclose(check.relative_error, error, rtol=1e-12)
    assert check.ok == (error == 0.0)


def test_of_several_calls_the_worst_counts_for_each_output() -> None:
    ones = np.ones(4)
    references = [{"y": ones, "z": ones}] * 3
    found = [{"y": ones, "z": ones}, {"y": 1.5 * ones}, {"y": 1.1 * ones, "z": ones}]
    y, z = worst_outputs(found, references, tolerance=0.2)
    np.testing.assert_allclose(y.relative_error, 0.5)
    assert (y.name, z.name, z.relative_error) == ("y", "z", np.inf)
    bad = [{"y": np.full(4, np.nan)}, *({"y": 2 * ones} for _ in range(2))]
    assert np.isnan(worst_outputs(bad, [{"y": ones}] * 3, tolerance=0.2)[0].relative_error)


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_every_exporter_names_itself_without_its_tools(name: str) -> None:
    exporter = EXPORTERS.get(name)
    assert exporter.suffix.startswith(".")
    assert exporter.accepts
    assert exporter.extra
    assert exporter.packages
