"""Documents keep their promises: links lead somewhere, commands and options exist."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from edgesparse.cli import main

ROOT = Path(__file__).parents[2]
SKIPPED = {".venv", "build", "out", "node_modules"}
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not SKIPPED & set(path.relative_to(ROOT).parts) and not path.parts[-2].startswith(".")
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^(?:\$ )?edgesparse (.+)$", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    missing = [
        target
        for target in targets
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize(
    "document",
    [d for d in DOCUMENTS if COMMAND.search(d.read_text(encoding="utf-8"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_are_ones_that_can_be_typed(document: Path) -> None:
    for line in COMMAND.findall(document.read_text(encoding="utf-8").replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        command: click.Command | None = main
        while isinstance(command, click.Group) and words:
            word = words.pop(0)
            command = command.get_command(click.Context(command), word)
            assert command is not None, f"no command {word!r} in: edgesparse {line}"
        assert command is not None
        known = {o for parameter in command.params for o in parameter.opts} | {"--help"}
        for option in (word for word in words if word.startswith("-")):
            assert option.partition("=")[0] in known, f"{option} in: edgesparse {line}"


@pytest.mark.parametrize(
    ("name", "unhashed"), [("requirements.lock", ["torch"]), ("requirements-tools.lock", [])]
)
def test_every_pinned_package_is_exact_and_has_hashes(name: str, unhashed: list[str]) -> None:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / name).read_text(encoding="utf-8"))
    entry = r"(?m)^([A-Za-z0-9._-]+)==[^\s+]+((?: \\\n    --hash=sha256:[0-9a-f]{64})*)\n"
    assert re.sub(entry, "", text) == ""
    assert [pin for pin, hashes in re.findall(entry, text) if not hashes] == unhashed


def test_the_lock_holds_what_the_project_needs() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").lower().replace("_", "-")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Core AI is there as pre-releases only, 63 MB of them, and nothing here needs it.
    extras = [v for name, v in project["optional-dependencies"].items() if name != "coreai"]
    needed = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    for requirement in needed:
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        assert name == "edgesparse" or f"\n{name}==" in lock, name
