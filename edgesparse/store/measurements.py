"""Numbers that were measured once and are kept: times and losses by subject and candidate.

    {"version": 1, "<what>": {subject: {candidate: number}}}

The file is replaced whole. One that cannot be read is reported and its numbers are measured anew: a
cache is never a reason to fail.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from edgesparse.errors import CorruptPack
from edgesparse.store.fields import Fields
from edgesparse.store.strict_json import parse_object

_log = logging.getLogger(__name__)
_MAX_NBYTES = 1 << 26

Measurements = dict[str, dict[str, float]]


def read_measurements(path: Path, what: str, *, version: int) -> Measurements:
    """Return the numbers of a file, {} if there is none or it cannot be used.

    Args:
        path: The file.
        what: What they are, plural.
        version: Of the way they are measured; those of another one are not returned.
    """
    try:
        if path.stat().st_size > _MAX_NBYTES:
            raise CorruptPack(f"it has {path.stat().st_size} bytes")
        fields = Fields(parse_object(path.read_bytes(), path.name), path.name)
        if fields.integer("version") != version:
            return {}
        found = fields.object(what)
        return {
            subject: {candidate: _finite(own, candidate) for candidate in found.raw(subject)}
            for subject, own in found.items()
        }
    except FileNotFoundError:
        return {}
    except (CorruptPack, OSError) as error:
        _log.warning(
            "%s: measured %s cannot be read, so they are measured anew: %s", path, what, error
        )
        return {}


def _finite(own: Fields, candidate: str) -> float:
    value = own.optional_number(candidate)
    if value is None or value < 0:
        raise own.wrong(f"{candidate[:60]!r} is {value}")
    return value


def write_measurements(
    path: Path, what: str, measurements: Mapping[str, Mapping[str, float]], *, version: int
) -> None:
    """Replace the file; a disk that refuses is reported and costs only the time to measure."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": version, what: measurements}, allow_nan=False)
        aside.write_text(text, encoding="ascii")
        aside.replace(path)
    except (OSError, ValueError) as error:
        _log.warning("%s: measured %s cannot be kept: %s", path, what, error)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
