"""The journal beside an output: where it lies, what an earlier run left there, when it goes.

out/.classics.journal/            of the output out/classics
  plan.json                       what was asked for, and the plan that came of it
  journal.jsonl, *.safetensors    the plan's finished layers
  alternative/                    those of its equal-byte alternative
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse.calibrate.team import Team
from edgesparse.errors import FormatError, OutputExists, ResumeRefused
from edgesparse.journal.identity import first_difference
from edgesparse.journal.journal import NAME
from edgesparse.model import CapturedModel
from edgesparse.planner.types import Plan
from edgesparse.store.atomic import flush_directory
from edgesparse.store.fields import Fields
from edgesparse.store.plan_json import plan_from_json
from edgesparse.store.strict_json import parse_object
from edgesparse.store.tensorfile import write_bytes

_PLAN = "plan.json"


@dataclass
class Kept:
    """What is kept of one run until its output is saved.

    Attributes:
        journal: The directory.
        is_saved: Set it once the output is whole: the journal goes then.
    """

    journal: Path
    is_saved: bool = False


@contextmanager
def kept(output: Path, team: Team, *, resume: bool, force: bool) -> Iterator[Kept]:
    """Yield the journal of ``output``; it goes with success, and when nothing was finished.

    Raises:
        OutputExists: Finished layers are there, and neither option says what to do about them.
    """
    at = Kept(beside(output))
    if team.leads:
        begin(at.journal, resume=resume, force=force)
    try:
        yield at
    except KeyboardInterrupt:
        parts = finished_parts(at.journal)
        raise KeyboardInterrupt(
            f"interrupted; {parts} finished parts are kept in {at.journal}, --resume goes on"
            if parts
            else ""
        ) from None
    finally:
        if team.leads and (at.is_saved or not finished_parts(at.journal)):
            discard(at.journal)


def beside(output: Path) -> Path:
    """Return where the journal of ``output`` lies."""
    return output.parent / f".{output.name}.journal"


def finished_parts(journal: Path) -> int:
    """Return how many parts an earlier run finished, those of its alternative included."""
    count = 0
    for file in (journal / NAME, journal / "alternative" / NAME):
        if file.is_file():
            count += max(0, file.read_bytes().count(b"\n") - 1)
    return count


def begin(journal: Path, *, resume: bool, force: bool) -> int:
    """Decide about what an earlier run left; return how many parts of it are gone on with.

    Raises:
        OutputExists: Finished layers are there, and neither option says what to do about them.
    """
    parts = finished_parts(journal)
    if parts and not resume and not force:
        raise OutputExists(
            f"{journal} holds {parts} finished parts of an interrupted run; --resume goes on with "
            "them, --force starts anew"
        )
    if not resume:
        discard(journal)
        return 0
    return parts


def discard(journal: Path) -> None:
    """Remove a journal, if it is there."""
    shutil.rmtree(journal, ignore_errors=True)


def remember(journal: Path, asked: Mapping[str, Any], chosen: Plan) -> None:
    """Keep the plan that was made of what was asked for: measuring it again takes long.

    Raises:
        FormatError: It cannot be written.
    """
    text = json.dumps({"asked": dict(asked), "chosen": chosen.to_json()}).encode("ascii")
    aside = journal / f".{_PLAN}.partial"
    try:
        journal.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        write_bytes(aside, text)
        aside.replace(journal / _PLAN)
        flush_directory(journal)
    except OSError as error:
        raise FormatError(f"cannot write {journal}: {error.strerror or error}") from error


def recall(journal: Path, asked: Mapping[str, Any], captured: CapturedModel) -> Plan | None:
    """Return the plan that was remembered; None if there is none.

    Raises:
        ResumeRefused: Something else was asked for then.
        CorruptPack: The file is damaged.
    """
    path = journal / _PLAN
    if not path.is_file():
        return None
    fields = Fields(parse_object(path.read_bytes(), str(path)), str(path))
    now = json.loads(json.dumps(dict(asked)))
    difference = first_difference(fields.raw("asked"), now)
    if difference:
        raise ResumeRefused(
            f"{journal} is of another job: {difference}; give the same recipe and "
            "budget again, or start anew with --force"
        )
    return plan_from_json(fields.object("chosen"), {t.name: t for t in captured.tensors})
