"""SHA-256 of files and mapped bytes, without holding them in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from edgesparse.errors import SourceError


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Return the digest over the bytes of ``paths``, one after the other.

    Raises:
        SourceError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()
