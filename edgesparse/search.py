"""Carry several plans out in parallel processes, measure them, and keep the front.

Every point is one ``edgesparse compress`` of its own, in a process of its own: a crash costs one
point. What a point was and what came of it is written when it is done; a search that was stopped
goes on with what is missing.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesparse.errors import CorruptPack, SourceError
from edgesparse.store.fields import Fields
from edgesparse.store.strict_json import parse_object

RECORD = "point.json"
_LAST_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan carried out.

    Attributes:
        name: Its folder.
        arguments: What ``compress`` was given beside the output.
        nbytes: Bytes of the written weights; None where it failed.
        loss: KL divergence to the dense model, else relative output error; None likewise.
        perplexity: For language models.
        error: Why it failed, the last line of what it said.
    """

    name: str
    arguments: tuple[str, ...]
    nbytes: int | None = None
    loss: float | None = None
    perplexity: float | None = None
    error: str = ""


def search(
    points: Iterable[tuple[str, Sequence[str]]],
    folder: Path,
    *,
    jobs: int,
    done: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Run every point that is not there yet; return all of them in order.

    Args:
        points: Names and the arguments of ``edgesparse compress`` without ``-o``.
        folder: Where the compressed models and records go; made if missing.
        jobs: Processes at a time.
        done: Called after every point.

    Raises:
        SourceError: ``folder`` holds a point of the same name with other arguments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(name, tuple(map(str, arguments))) for name, arguments in points]
    known = {name: _recorded(folder, name, arguments) for name, arguments in wanted}

    def run(point: tuple[str, tuple[str, ...]]) -> Point:
        name, arguments = point
        found = known[name] or _run(folder, name, arguments)
        done(found)
        return found

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(run, wanted))


def front_of(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in both bytes and loss, smallest first."""
    front: list[Point] = []
    measured = [p for p in points if p.nbytes is not None and p.loss is not None]
    for point in sorted(measured, key=lambda p: (p.nbytes, p.loss)):
        if not front or (point.loss or 0.0) < (front[-1].loss or 0.0):
            front.append(point)
    return front


def _recorded(folder: Path, name: str, arguments: tuple[str, ...]) -> Point | None:
    """Return a point done before; one that failed is tried again."""
    path = folder / name / RECORD
    if not path.is_file():
        return None
    try:
        point = read_point(path)
    except (CorruptPack, OSError) as error:
        raise SourceError(f"{path}: no record of a search: {error}; remove it") from None
    if point.arguments != arguments:
        raise SourceError(
            f"{folder / name}: made with {' '.join(point.arguments)}, now {' '.join(arguments)} is "
            "asked for; choose another folder"
        )
    return None if point.error else point


def read_point(path: Path) -> Point:
    """Return a point from its record.

    Raises:
        CorruptPack: It is no record of one.
    """
    stored = Fields(parse_object(path.read_bytes(), path.name), path.name)
    return Point(
        name=stored.text("name"),
        arguments=stored.texts("arguments"),
        nbytes=stored.optional_integer("nbytes"),
        loss=stored.optional_number("loss"),
        perplexity=stored.optional_number("perplexity"),
        error=stored.text("error"),
    )


def _run(folder: Path, name: str, arguments: tuple[str, ...]) -> Point:
    output = folder / name
    command = [sys.executable, "-m", "edgesparse", "compress", *arguments, "-o", str(output)]
    ran = subprocess.run(
        [*command, "--force", "--json", "--quiet"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if ran.returncode:
        said = " ".join(line.strip() for line in ran.stderr.strip().splitlines()[-_LAST_LINES:])
        return Point(name=name, arguments=arguments, error=said or f"exit {ran.returncode}")
    point = Point(name=name, arguments=arguments, **_measured(json.loads(ran.stdout)))
    temporary = output / f".{RECORD}"
    temporary.write_text(json.dumps(asdict(point), indent=2), encoding="utf-8")
    temporary.replace(output / RECORD)
    return point


def _measured(said: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a point from what ``compress --json`` printed."""
    found = (said.get("evaluation") or {}).get("compressed") or {}
    loss = found.get("kl") if found.get("kl") is not None else found.get("output_error")
    return {
        "nbytes": said["file_nbytes"],
        "loss": _finite(loss),
        "perplexity": _finite(found.get("perplexity")),
    }


def _finite(value: float | None) -> float | None:
    """Return what a record can hold: of a model that has come apart there is no loss."""
    return value if value is not None and math.isfinite(value) else None
