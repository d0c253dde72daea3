"""A directory that appears whole or not at all.

Everything is written into a hidden sibling, flushed to the disk, and renamed. Replacing an existing
one exchanges the two names in one step where the system can (Linux, macOS); elsewhere the old one
is moved aside first, for the blink between two renames.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesparse.errors import FormatError, OutputExists

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux, renameat2(2)
_RENAME_SWAP = 2  # macOS, renamex_np(2)


@contextmanager
def new_directory(
    path: Path, *, force: bool, replaceable: Callable[[Path], bool]
) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` when the block ends without an exception.

    Whatever ends it otherwise, Ctrl-C included, leaves nothing behind and ``path`` as it was.

    Args:
        path: Where the directory should be.
        force: Replace what is there.
        replaceable: Whether what is there may be replaced: nobody's home directory should be.

    Raises:
        OutputExists: Something is there, and ``force`` is not set or it may not be replaced.
        FormatError: The file system refuses: full, read-only, not permitted.
    """
    refuse_existing(path, force=force, replaceable=replaceable)
    try:
        with work_directory(path) as temporary:
            yield temporary
            flush_directory(temporary)
            refuse_existing(path, force=force, replaceable=replaceable)
            _put_in_place(temporary, path)
            flush_directory(path.parent)
    except OSError as error:
        raise FormatError(
            f"cannot write {path}: {error.strerror or error}; nothing was left there"
        ) from error


@contextmanager
def work_directory(path: Path) -> Iterator[Path]:
    """Yield a hidden empty directory beside ``path`` that is gone after the block.

    A process that is killed cannot remove its own: the next one that works on ``path`` does. Each
    holds a lock on its directory, which goes with it, so that one still at work is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.partial"):
        with _locked(left) as is_ours:
            if is_ours:
                shutil.rmtree(left, ignore_errors=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.partial"
    temporary.mkdir()
    try:
        with _locked(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a directory; yield whether that worked: else another process has it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # gone meanwhile, or a link
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def refuse_existing(path: Path, *, force: bool, replaceable: Callable[[Path], bool]) -> None:
    """Check that ``path`` is free or may be replaced; call it before hours of work too.

    Raises:
        OutputExists: It is not.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputExists(f"{path} exists; --force replaces it")
    if path.is_symlink() or not replaceable(path):
        raise OutputExists(f"{path} exists and is not a compressed model; remove it yourself first")


def flush_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; what was there, if anything, is then at ``temporary``."""
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        aside = temporary.with_suffix(".replaced")
        path.rename(aside)
        temporary.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False when the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        return bool(libc.renamex_np(first, second, _RENAME_SWAP) == 0)
    if not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0)
