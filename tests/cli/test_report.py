"""The page: self-contained, complete, well-formed."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from click.testing import Result

from edgesparse.model import CompressedModel

Cli = Callable[..., Result]
VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Collects what is open, and every address the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An SVG element that closes itself."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(cli: Cli, compressed: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = cli("report", compressed, "-o", page)
    assert result.exit_code == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert balance.addresses
    assert all(address.startswith("data:") for address in balance.addresses)
    assert "<script" not in text
    assert "http" not in text
    for name in CompressedModel.load(compressed).captured.by_name:
        assert name in text or name == "lm_head.weight"  # tied: shown under its first name
    assert "within the budget" in text
    assert "edgesparse compress" in text  # how to make it again


def test_an_existing_page_needs_force(cli: Cli, compressed: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("precious")
    assert cli("report", compressed, "-o", page).exit_code == 1
    assert page.read_text() == "precious"
    assert cli("report", compressed, "-o", page, "--force").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
