"""Every example runs as it stands, from a directory of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ENOUGH_SECONDS = 900
RunScript = Callable[[Path, Path, int], str]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_it_runs(run_script: RunScript, example: Path, tmp_path: Path) -> None:
    assert run_script(example, tmp_path, ENOUGH_SECONDS).strip()


def test_the_recipe_file_is_the_one_the_documents_show() -> None:
    from edgesparse.recipe import Recipe

    rules = Recipe.from_toml(EXAMPLES / "02_recipe.toml").rules
    assert [rule.bits for rule in rules] == [4, 4, 4, 4]
    assert [str(rule.pattern) for rule in rules][1] == "2:4"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_it_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 80
