"""Whether a disk has room, asked before hours are spent and again before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgesparse.budget import format_size
from edgesparse.errors import FormatError


def require_space(path: Path, nbytes: int) -> None:
    """Check that ``nbytes`` fit on the disk that ``path`` will be on; it need not exist yet.

    Raises:
        FormatError: They do not; says how much is free.
    """
    place = path.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise FormatError(
            f"{path}: {format_size(nbytes)} are needed, {format_size(free)} are free on that disk; "
            "make room or choose another place"
        )
