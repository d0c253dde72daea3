"""The verb ``device`` as typed, and the pytest plugin as a stranger would use it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from edgesparse_device.bundle import Bundle

from edgesparse.cli import main

Make = Callable[..., Bundle]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["device", *map(str, arguments)])


@pytest.fixture
def adb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Listing starts an adb server, which stays: one of our own, ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(listener.getsockname()[1]))
    yield
    if shutil.which("adb"):
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


def test_list_says_what_there_is_and_why_not(adb_server: None):
    done = call("list")
    assert done.exit_code == 0
    assert "host" in done.output
    if sys.platform != "darwin":
        assert "needs macOS" in done.output
    listed = json.loads(call("list", "--json").output)["devices"]
    assert all((device["info"] is None) == bool(device["reason"]) for device in listed)


def test_run_records_and_compares(make_bundle: Make, tmp_path: Path):
    bundle = make_bundle()
    done = call("run", bundle.path, "-o", tmp_path / "records", "--runs", 2, "--json")
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.output)["records"]
    assert record["ok"]
    saved = tmp_path / "records" / bundle.path.name / "host.json"
    assert json.loads(saved.read_text()) == record

    assert call("compare", saved, saved).exit_code == 0
    record["cases"][0]["outputs"][0]["relative"] = 0.5
    (tmp_path / "worse.json").write_text(json.dumps(record))
    worse = call("compare", saved, tmp_path / "worse.json")
    assert worse.exit_code == 1
    assert "relative error" in worse.output


def test_wrong_outputs_exit_1(make_bundle: Make, cases):
    (case,) = cases(1)
    case.outputs["logits"] += 1
    done = call("run", make_bundle(cases=[case]).path, "--runs", 1)
    assert done.exit_code == 1
    assert "relative error" in done.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "nothing"), 1, "is no bundle"),
        (("run", "nothing", "--device", "hots"), 2, "did you mean 'host'"),
        (("run", "nothing", "--device", "host,host"), 2, "distinct names"),
        (("compare", "a.json", "b.json"), 1, "a.json"),
        (("bundle", "a.pte", "--from", "m", "-o", "out"), 1, "a.pte"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], code: int, words: str):
    done = call(*arguments)
    assert done.exit_code == code
    assert words in done.output
    assert "Traceback" not in done.output


def run_pytest(*arguments: object) -> subprocess.CompletedProcess[str]:
    # By name, whether or not the package was installed with its entry points.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "edgesparse_device.plugin"]
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]
    return subprocess.run(
        [*command, *options, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


def test_the_plugin_makes_a_test_of_every_case(make_bundle: Make, cases, tmp_path: Path):
    right, wrong = cases(2)
    wrong.outputs["logits"] = np.zeros_like(wrong.outputs["logits"])
    bundle = make_bundle(cases=[right, wrong])

    without = run_pytest(bundle.path)
    assert "no tests ran" in without.stdout
    done = run_pytest(bundle.path, "--edgesparse-device", "host", "--edgesparse-records", tmp_path)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "host-case-1: logits: relative error" in done.stdout
    assert (tmp_path / bundle.path.name / "host.json").exists()
    assert "did you mean" in run_pytest(bundle.path, "--edgesparse-device", "hots").stdout
