"""Known vulnerabilities are found in a copy of the advisory database."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "advisories.py"))
ENTRY = """
id: PYSEC-1
affected:
- package: {name: some-package, ecosystem: PyPI}
  ranges:
  - type: GIT
    events: [{introduced: '0'}]
  - type: ECOSYSTEM
    events: [{introduced: '0'}, {fixed: 1.2.0}, {introduced: 2.0.0}, {last_affected: 2.3.0}]
  versions: [9.9.9rc1]
published: '2024-01-02T03:04:05Z'
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    (folder / "PYSEC-1.yaml").write_text(ENTRY)
    (folder / "PYSEC-2.yaml").write_text(
        ENTRY.replace("PYSEC-1", "PYSEC-2") + "withdrawn: '2024-02-02T00:00:00Z'\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("version", "affected"),
    [("0.1", True), ("1.1.9", True), ("1.2.0", False), ("1.2", False), ("2.0.0rc1", False),
     ("2.0", True), ("2.3.0", True), ("2.3.1", False), ("9.9.9rc1", True)],
)  # fmt: skip
def test_versions_in_ranges_or_listed(database: Path, version: str, affected: bool) -> None:
    found: list[Any] = list(SCRIPT["findings"](database, {"some-package": version, "other": "1"}))
    assert [str(f) for f in found] == (
        [f"some-package {version}: PYSEC-1, fixed in 1.2.0"] if affected else []
    )


def test_the_age_of_what_is_known_is_said(database: Path) -> None:
    assert SCRIPT["newest"](database) == "2024-01-02"


def test_this_environment_has_names_as_the_database_writes_them() -> None:
    assert {"torch", "huggingface-hub", "pyyaml"} <= set(SCRIPT["installed"]())
