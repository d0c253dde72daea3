"""A file or package that appears whole or not at all, with what is written beside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgesparse.errors import FormatError, OutputExists
from edgesparse.store.atomic import flush_directory, work_directory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_DENIED = (errno.EACCES, errno.EPERM)


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary path of the same name; move it to ``path`` if the block ends well.

    What the block wrote beside it moves with it; all of it is on the disk before. Whatever ends it
    otherwise leaves nothing behind, the folders made for it included.

    Raises:
        OutputExists: What was written beside it is there already, and ``force`` is not set.
        FormatError: The disk is full, read-only or not permitted.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        with work_directory(path) as folder:
            temporary = folder / path.name
            yield temporary
            _flush(folder)
            beside = {file: path.parent / file.name for file in folder.iterdir()}
            taken = [place for place in beside.values() if place != path and place.exists()]
            if taken and not force:
                raise OutputExists(f"{taken[0]} exists; --force replaces it")
            if path.exists():
                path.rename(folder / "replaced")
            for file in sorted(beside, key=temporary.__eq__):  # the artifact itself comes last
                file.replace(beside[file])
            flush_directory(path.parent)
    except BaseException as error:
        for parent in made:
            with suppress(OSError):  # somebody else has put something there meanwhile
                parent.rmdir()
        if isinstance(error, OSError) and _is_refusal(error, path.parent):
            raise FormatError(
                f"cannot write {path}: {error.strerror}; nothing was left there"
            ) from error
        raise


def _is_refusal(error: OSError, folder: Path) -> bool:
    """Whether the file system refuses; a file elsewhere that cannot be opened is another matter."""
    here = str(error.filename).startswith(str(folder))
    return error.errno in _FULL or (error.errno in _DENIED and here)


def _flush(folder: Path) -> None:
    """Make everything below a folder durable: a name must not outlive what it names."""
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
