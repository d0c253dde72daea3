"""Examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"edgesparse": ROOT, **{f"edgesparse_{r}": ROOT / d for r, d in (
    ("kernels", "kernels"), ("converters", "converters"), ("device", "device_tests"))}}  # fmt: skip


def modules() -> list[str]:
    """Return the name of every module with an example in it."""
    found = []
    for package, root in ROOMS.items():
        for path in sorted((root / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(root).with_suffix("").parts
                found.append(".".join(parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("module", modules())
def test_examples_in(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
