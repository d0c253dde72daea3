"""Folders that appear whole or not at all, and digests of what is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesparse.errors import OutputExists


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give an empty temporary sibling that becomes ``path`` if the block ends well.

    Raises:
        OutputExists: Something is at ``path`` and ``force`` is not set.
    """
    if path.exists() and not force:
        raise OutputExists(f"{path} exists; use --force to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        inner = outer / "new"
        inner.mkdir()
        yield inner
        if path.exists():
            path.rename(outer / "old")
        inner.rename(path)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name and move it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, over the names and digests of its files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            line = f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n"
            digest.update(line.encode())
        return digest.hexdigest()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
