"""The page of accuracies says what the results beside it say."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location(
        "accuracy_table", ROOT / "bench" / "accuracy_table.py"
    )
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    data = json.loads((ROOT / "docs" / "accuracy.json").read_text())
    assert table.page(data) == (ROOT / "docs" / "accuracy.md").read_text()
