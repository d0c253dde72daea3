"""The finished tensors of one job in a directory: each durable before the next is begun.

    journal.jsonl        one line for each entry: 16 hex digits of its SHA-256, a space, JSON
                         line 1: the identity of the job; then one line for each part
    <tensor>.safetensors a part: the packed buffers of tensors that were solved together,
                         named by 32 hex digits of the SHA-256 of the first one's name

A part is written aside, flushed, renamed, and the directory flushed; only then its line, with the
part's SHA-256, is appended and flushed. A line that was cut short by a crash is dropped on opening.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesparse.errors import CorruptPack, EdgesparseError, FormatError, ResumeRefused
from edgesparse.journal.identity import first_difference
from edgesparse.model import TensorInfo
from edgesparse.packed import PackedTensor
from edgesparse.store.atomic import flush_directory
from edgesparse.store.fields import Fields
from edgesparse.store.layout import buffer_name
from edgesparse.store.loading import read_packed
from edgesparse.store.manifest import PackedRecord
from edgesparse.store.plan_json import spec_from_json
from edgesparse.store.strict_json import parse_object
from edgesparse.store.tensorfile import TensorFile, write_tensor_file

NAME = "journal.jsonl"
_CHECK = 16
_MAX_LINE = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One tensor of an earlier run: how it is stored, where, and what was measured of it."""

    part: str
    record: PackedRecord
    error: float
    dropped: int


class Journal:
    """The journal of one job.

    Args:
        directory: Where it is or will be; parents are made.
        identity: The job; see ``identity.identity``.
        writes: Whether this process appends; the others of a team only add parts.

    Attributes:
        finished: Tensors of earlier runs by name, and of this one.

    Raises:
        ResumeRefused: The journal there is another job's, or another process is at work on it.
        FormatError: It cannot be written.
    """

    def __init__(
        self, directory: Path, identity: Mapping[str, Any], *, writes: bool = True
    ) -> None:
        self.directory, self._writes = directory, writes
        self.finished: dict[str, Finished] = {}
        # Through JSON and back, so that it equals one that was read.
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._descriptor = -1
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            self.close()
            raise _refused(directory, error) from error
        except EdgesparseError:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def write_part(
        self,
        packed: Mapping[str, PackedTensor],
        errors: Mapping[str, float],
        dropped: Mapping[str, int],
    ) -> dict[str, Any]:
        """Make the packed tensors durable; return the line that ``commit`` is to append.

        Args:
            packed: By name.
            errors: Measured errors by name.
            dropped: Codes of value 0 left out of the mask, by name.

        Raises:
            FormatError: The disk is full, or another fault of the file system.
        """
        part = hashlib.sha256(next(iter(packed)).encode()).hexdigest()[:32]
        place, aside = self._path(part), self._path(part).with_suffix(".partial")
        buffers = {
            buffer_name(name, buffer): array
            for name, tensor in packed.items()
            for buffer, array in tensor.buffers.items()
        }
        try:
            aside.unlink(missing_ok=True)
            digest = write_tensor_file(aside, buffers)
            aside.replace(place)
            flush_directory(self.directory)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise _refused(self.directory, error) from error
        tensors = [
            {
                "name": name,
                "spec": tensor.spec.to_json(),
                "buffers": list(tensor.buffers),
                "dropped": dropped[name],
                "error": errors[name] if math.isfinite(errors[name]) else None,
            }
            for name, tensor in packed.items()
        ]
        return {"part": part, "sha256": digest, "tensors": tensors}

    def commit(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the lines of parts that are durable, and flush them.

        Raises:
            FormatError: The disk is full, or another fault of the file system.
        """
        for line in lines:
            self._take(Fields(dict(line), NAME))
        if not self._writes:
            return
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            _write(self._descriptor, b"".join(map(_line, lines)))
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, end)
            raise _refused(self.directory, error) from error

    def packed(self, tensor: TensorInfo) -> PackedTensor:
        """Return one finished tensor, mapped from its part and checked by its format."""
        found = self.finished[tensor.name]
        return read_packed(tensor, found.record, TensorFile(self._path(found.part)))

    def _path(self, part: str) -> Path:
        return self.directory / f"{part}.safetensors"

    def _open(self) -> None:
        """Lock the file, compare the job, drop what a crash cut short, take what is finished."""
        flags = os.O_RDWR | os.O_CREAT if self._writes else os.O_RDONLY
        self._descriptor = os.open(self.directory / NAME, flags, 0o644)
        if self._writes:
            _lock(self._descriptor, self.directory)
        content = (self.directory / NAME).read_bytes()
        lines, whole = _whole_lines(content)
        difference = first_difference(lines[0], self._identity) if lines else None
        if difference:
            raise ResumeRefused(
                f"{self.directory} is of another job: {difference}; give the same again, or start "
                "anew with --force"
            )
        if self._writes and whole < len(content):
            os.ftruncate(self._descriptor, whole)
        if not lines:
            self._begin()
            return
        for line in lines[1:]:
            self._take_if_whole(Fields(line, NAME))

    def _begin(self) -> None:
        if not self._writes:
            return
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        _write(self._descriptor, _line(self._identity))
        os.fsync(self._descriptor)
        flush_directory(self.directory)
        flush_directory(self.directory.parent)

    def _take_if_whole(self, line: Fields) -> None:
        """Take a part of an earlier run if its file is what was written: else it is solved anew."""
        path = self._path(_part_of(line))
        try:
            is_whole = TensorFile(path).sha256() == line.text("sha256")
        except CorruptPack:
            is_whole = False
        if is_whole:
            self._take(line)

    def _take(self, line: Fields) -> None:
        for tensor in line.objects("tensors"):
            record = PackedRecord(
                spec=spec_from_json(tensor.object("spec")), buffers=tensor.texts("buffers")
            )
            error = tensor.optional_number("error")
            self.finished[tensor.text("name")] = Finished(
                part=_part_of(line),
                record=record,
                error=0.0 if error is None else error,
                dropped=tensor.integer("dropped"),
            )


def begun_batch(directory: Path | None) -> int | None:
    """Return the size of the batches of the job whose journal is there; None without one.

    Raises:
        FormatError: The journal cannot be read.
    """
    path = None if directory is None else directory / NAME
    if path is None or not path.exists():
        return None
    try:
        lines, _ = _whole_lines(path.read_bytes())
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror or error}") from error
    options = lines[0].get("options") if lines else None
    size = options.get("batch_size") if isinstance(options, dict) else None
    return size if isinstance(size, int) and size > 0 else None


def _part_of(line: Fields) -> str:
    part = line.text("part")
    if len(part) != 32 or set(part) - set("0123456789abcdef"):
        raise line.wrong(f"{part[:40]!r} is not the name of a part")
    return part


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return hashlib.sha256(text).hexdigest()[:_CHECK].encode() + b" " + text + b"\n"


def _whole_lines(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the lines up to the first that is not whole, and where they end."""
    values, end = [], 0
    for line in content.splitlines(keepends=True):
        check, _, text = line.rstrip(b"\n").partition(b" ")
        right = hashlib.sha256(text).hexdigest()[:_CHECK].encode()
        if not line.endswith(b"\n") or check != right or len(line) > _MAX_LINE:
            break
        values.append(parse_object(text, NAME))
        end += len(line)
    return values, end


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResumeRefused(f"another process is at work on {directory}") from None


def _refused(directory: Path, error: OSError) -> FormatError:
    return FormatError(
        f"{directory}: {error.strerror or error}; finished layers are kept there: make room and go "
        "on with --resume"
    )
