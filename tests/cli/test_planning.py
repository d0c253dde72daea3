"""A budget and nothing else: the model is asked what it minds, and the result fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Cli = Callable[..., Result]


def test_a_budget_alone_is_enough(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = cli(
        "compress", language_model, "-o", out, "--calibration", text, "--budget", "500kB",
        "--window", "32", "--windows", "8", "--no-compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert (out / "weights.safetensors").stat().st_size <= 500_000
    plan = json.loads((out / "edgesparse.json").read_text())["plan"]
    assert 0 < plan["loss"] < 10
    assert len({entry["nbytes"] for entry in plan["tensors"]}) > 2


def test_what_was_asked_for_is_not_measured_again(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured, but nothing was left open")

    monkeypatch.setattr("edgesparse.planner.sensitivity.measure_sensitivity", refuse)
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text,
        "--sparsity", "0.5", "--bits", "4", "--group-size", "64", "--budget", "600kB",
        "--window", "32", "--windows", "8", "--no-compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr


def test_an_open_pattern_meets_a_budget_that_the_asked_one_cannot(
    cli: Cli, language_model: Path
) -> None:
    asked = ("plan", language_model, "--target", "executorch", "--sparsity", "0.5", "--bits", "4",
             "--group-size", "64", "--embedding-bits", "8")  # fmt: skip
    size = json.loads(cli(*asked, "--json").stdout)["artifact_nbytes"]
    assert cli(*asked, "--budget", str(size - 4000)).exit_code == 3
    result = cli(*asked, "--budget", str(size - 4000), "--allow", "patterns", "--json")
    assert result.exit_code == 0, result.stderr
    rules = [entry["rule"] for entry in json.loads(result.stdout)["tensors"]]
    assert any(rule and rule["pattern"] not in ("unstructured", {}) for rule in rules)


def test_what_the_export_will_be_given_is_planned_and_then_taken(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("executorch")
    chosen = ("--target", "executorch", "-O", "activations=int8", "--bits", "3")
    plan = json.loads(cli("plan", language_model, *chosen, "--json").stdout)
    assert plan["options"] == {"activations": "int8"}
    small, program = tmp_path / "small", tmp_path / "small.pte"
    result = cli(
        "compress", language_model, "-o", small, *chosen, "--quantizer", "rtn", "--no-compare",
        "--calibration", text, "--window", "32", "--windows", "8",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    result = cli("export", small, "-o", program, "--json")
    assert "activations=int8, as planned" in json.loads(result.stdout)["notes"]
    assert b'"activations":"int8"' in program.read_bytes()


def test_options_that_no_time_depends_on_are_for_the_export(cli: Cli, language_model: Path) -> None:
    result = cli("plan", language_model, "--target", "executorch", "-O", "context=64")
    assert result.exit_code == 2
    assert "option 'context': a plan for executorch counts activations" in result.stderr
    assert cli("plan", language_model, "-O", "activations").exit_code == 2


def test_the_front_is_drawn(cli: Cli, language_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "front.svg"
    result = cli("plan", language_model, "--budget", "500kB", "--plot", image)
    assert result.exit_code == 0, result.stderr
    assert "best found" in image.read_text()


def test_an_image_of_no_known_kind_is_refused(
    cli: Cli, language_model: Path, tmp_path: Path
) -> None:
    result = cli("plan", language_model, "--plot", tmp_path / "front.doc")
    assert result.exit_code == 2
    assert "expected an image ending in" in result.stderr


def test_the_plan_listens_to_calibration_and_remembers_what_it_heard(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPARSE_CACHE", str(tmp_path))
    options = ("plan", language_model, "--budget", "500kB", "--json")
    alike = json.loads(cli(*options).stdout)
    assert not list(tmp_path.iterdir())
    result = cli(*options, "--calibration", text)
    assert result.exit_code == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["nbytes"] <= 500_000
    assert measured["loss"] != alike["loss"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]

    def refuse(*_: object) -> None:
        raise AssertionError("the model was run again")

    monkeypatch.setattr("edgesparse.planner.sensitivity.outputs", refuse)
    assert cli(*options, "--calibration", text).stdout == result.stdout


def test_every_candidate_is_solved_when_asked(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPARSE_CACHE", str(tmp_path))
    options = (
        "plan", language_model, "--budget", "500kB", "--json", "--bits", "4", "--group-size", "32",
        "--method", "magnitude", "--quantizer", "rtn", "--calibration", text,
    )  # fmt: skip
    heard, solved = (json.loads(cli(*options, *more).stdout) for more in ((), ("--solve",)))
    assert solved["nbytes"] <= 500_000
    assert solved["loss"] != heard["loss"]
    assert len(list(tmp_path.iterdir())) == 1  # losses and errors on the same inputs
    alone = cli("plan", language_model, "--solve")
    assert alone.exit_code == 2
    assert "--solve needs inputs to solve on" in alone.stderr


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({"EDGESPARSE_CACHE": "/a"}, "/a"), ({"EDGESPARSE_CACHE": ""}, None),
     ({"XDG_CACHE_HOME": "/b"}, "/b/edgesparse"), ({"HOME": "/c"}, "/c/.cache/edgesparse")],
    ids=str,
)  # fmt: skip
def test_where_it_is_remembered(
    environment: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgesparse.cli._options import cache_directory

    for name in ("EDGESPARSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == (None if wanted is None else Path(wanted))


def test_sparsity_is_shared_out_when_asked(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('allocation = "owl"\n[[rule]]\nmatch = {kind = "linear"}\nsparsity = 0.5\n')
    options = ("--calibration", text, "--window", "32", "--windows", "8", "--no-compare")
    out = tmp_path / "out"
    result = cli("compress", language_model, "-o", out, "--recipe", recipe, *options)
    assert result.exit_code == 0, result.stderr
    assert "sparsity shared out by owl" in result.stdout
    plan = json.loads((out / "edgesparse.json").read_text())["plan"]
    assert len({entry["rule"]["sparsity"] for entry in plan["tensors"] if entry["rule"]}) > 1


def test_an_allocation_nobody_knows_is_refused(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    result = cli(
        "compress", language_model, "-o", tmp_path / "out", "--calibration", text, "--sparsity",
        "0.5", "--allocation", "best", "--window", "32", "--windows", "8",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "unknown allocation 'best'; known: hessian, owl" in result.stderr


def test_a_scheme_is_asked_for_and_shown(
    cli: Cli, language_model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = cli(
        "compress", language_model, "-o", out, "--calibration", text, "--scheme", "table",
        "--table-rows", "16", "--bits", "4", "--window", "32", "--windows", "8", "--no-compare",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    shown = json.loads(cli("inspect", out, "--json").stdout)["tensors"]
    tables = [entry for entry in shown if entry.get("scheme") == "table"]
    assert tables
    assert {(entry["bits"], entry["table_rows"]) for entry in tables} == {(4, 16)}
    assert "dense4 table" in cli("inspect", out, "--all").stdout
    refused = cli("export", out, "-o", tmp_path / "m.pte")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "executorch cannot hold" in refused.stderr
    assert "(table)" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scheme", "affine", "--bits", "4"), "expected one of symmetric, asymmetric, table"),
        (("--scheme", "table", "--bits", "8"), "scheme table with 8 bits"),
        (("--table-rows", "16", "--bits", "4"), "with scheme symmetric"),
        (("--group-size", "tensor", "--scheme", "table", "--bits", "4"), "one scale for the"),
        (("--group-size", "row", "--bits", "4"), "'row' is not a valid integer"),
    ],
)
def test_schemes_that_cannot_be_are_misuse(
    cli: Cli, language_model: Path, options: tuple[str, ...], message: str
) -> None:
    result = cli("plan", language_model, *options)
    assert result.exit_code == 2
    assert message in result.stderr
