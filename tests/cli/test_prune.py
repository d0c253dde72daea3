"""``prune`` from the command line: a smaller model directory, or a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

import edgesparse

Cli = Callable[..., Result]
EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models/classics-4m"


def test_neurons_and_a_layer_go(cli: Cli, tmp_path: Path) -> None:
    output = tmp_path / "small"
    arguments = ("prune", MODEL, "-o", output, "--ffn", 0.25, "--layers", 1, "--windows", 4,
                 "--calibration", EXAMPLES / "data/calibration.txt", "--json")  # fmt: skip
    result = cli(*arguments)
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    small, whole = edgesparse.load(output), edgesparse.load(MODEL)
    assert said["parameters"] == small.num_parameters < whole.num_parameters
    layers = whole.config["num_hidden_layers"]
    assert small.config["num_hidden_layers"] == layers - 1
    assert small.config["intermediate_size"] == 0.75 * whole.config["intermediate_size"]
    assert cli(*arguments).exit_code == 1  # it is there
    assert cli(*arguments, "--force").exit_code == 0


def test_a_module_becomes_a_program(cli: Cli, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    nn = torch.nn\n"
        "    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()\n"
        "    return net, torch.zeros(1, 8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = cli("prune", "net:make", "-o", tmp_path / "net.pt2", "--channels", 0.5)
    assert result.exit_code == 0, result.stderr
    assert {t.shape for t in edgesparse.load(tmp_path / "net.pt2").tensors} >= {(16, 8), (4, 16)}


def test_nothing_to_cut_is_misuse(cli: Cli, tmp_path: Path) -> None:
    result = cli("prune", MODEL, "-o", tmp_path / "small")
    assert result.exit_code == 2
    assert "nothing is to be removed" in result.stderr
    assert not (tmp_path / "small").exists()
