"""The journal beside an output: what is remembered, what is refused, when it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.calibrate.team import Team
from edgesparse.errors import CorruptPack, OutputExists, ResumeRefused
from edgesparse.journal import first_difference
from edgesparse.journal.beside import begin, beside, finished_parts, kept, recall, remember
from edgesparse.journal.journal import NAME
from edgesparse.model import CapturedModel


@pytest.fixture
def captured() -> CapturedModel:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return es.load(module.eval(), example_inputs=torch.zeros(1, 8))


def fail(output: Path, parts: int, error: BaseException) -> None:
    """Run something that finishes so many parts and then fails."""
    with kept(output, Team(), resume=False, force=False) as at:
        with_parts(at.journal, parts)
        raise error


def with_parts(journal: Path, parts: int) -> None:
    journal.mkdir(parents=True, exist_ok=True)
    (journal / NAME).write_text("the job\n" + "a part\n" * parts)


def test_it_lies_hidden_beside_the_output() -> None:
    assert beside(Path("out/classics")) == Path("out/.classics.journal")


def test_a_plan_comes_back_as_it_was(captured: CapturedModel, tmp_path: Path) -> None:
    recipe = es.Recipe((es.Rule(pattern=es.Pattern(sparsity=0.5), bits=4, group_size=16),))
    plan = es.plan(captured, recipe, budget=es.Budget(file="1MB"))
    assert recall(tmp_path, {"bits": 4}, captured) is None
    remember(tmp_path, {"bits": 4}, plan)
    found = recall(tmp_path, {"bits": 4}, captured)
    assert found is not None
    assert found.to_json() == plan.to_json()
    with pytest.raises(ResumeRefused, match="of another job: bits was 4 and is 3"):
        recall(tmp_path, {"bits": 3}, captured)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(CorruptPack):
        recall(tmp_path, {"bits": 4}, captured)


def test_finished_parts_are_neither_used_nor_thrown_away_unasked(tmp_path: Path) -> None:
    journal = tmp_path / ".out.journal"
    with_parts(journal, 3)
    with_parts(journal / "alternative", 2)
    with pytest.raises(OutputExists, match=r"holds 5 finished parts .* --resume .* --force"):
        begin(journal, resume=False, force=False)
    assert begin(journal, resume=True, force=False) == 5
    assert finished_parts(journal) == 5
    assert begin(journal, resume=False, force=True) == 0
    assert not journal.exists()


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"):
        fail(tmp_path / "out", 0, ValueError("early"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_failed_keeps_what_it_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="late"):
        fail(tmp_path / "out", 2, ValueError("late"))
    assert [path.name for path in tmp_path.iterdir()] == [".out.journal"]


def test_an_interrupt_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"2 finished parts are kept in .*--resume"):
        fail(tmp_path / "out", 2, KeyboardInterrupt())


def test_success_removes_it(tmp_path: Path) -> None:
    with kept(tmp_path / "out", Team(), resume=False, force=False) as at:
        with_parts(at.journal, 2)
        at.is_saved = True
    assert list(tmp_path.iterdir()) == []


def test_only_the_leader_decides(tmp_path: Path) -> None:
    journal = beside(tmp_path / "out")
    with_parts(journal, 2)
    with kept(tmp_path / "out", Team(1, 2), resume=False, force=True) as at:
        at.is_saved = True
    assert finished_parts(journal) == 2


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b[1] was 2 and is 3"),
        ({"a": [1]}, {"a": [1, 2]}, "a was [1] and is [1, 2]"),
        ({"a": 1}, {"a": 1, "b": 2}, "b was None and is 2"),
    ],
)
def test_the_first_difference_is_named(then: object, now: object, words: str | None) -> None:
    assert first_difference(json.loads(json.dumps(then)), now) == words
