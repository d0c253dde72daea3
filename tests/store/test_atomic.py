from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgesparse.errors import FormatError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.store import atomic, load, save, tensorfile
from edgesparse.store.atomic import work_directory
from edgesparse.store.space import require_space


def tree(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> None:
    """Let the writing of the file ``name`` fail half-way."""
    write_bytes = tensorfile.write_bytes

    def failing(path: Path, content: bytes) -> str:
        if path.name == name:
            path.write_bytes(content[: len(content) // 2])
            raise error
        return write_bytes(path, content)

    monkeypatch.setattr("edgesparse.store.saving.write_bytes", failing)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), RuntimeError("bug")])
def test_a_save_that_fails_leaves_what_was_there(
    compressed: CompressedModel,
    small: CapturedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    force: bool,
) -> None:
    out = tmp_path / "out"
    if force:
        save(compressed, out)
    before = tree(tmp_path)
    fail_at(monkeypatch, "edgesparse.json", error)
    expected = FormatError if error is FULL else type(error)
    with pytest.raises(expected):
        save(compressed, out, force=force)
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if force else [])
    monkeypatch.undo()
    save(compressed, out, force=force)
    load(out, source=small)


def test_a_full_disk_is_seen_before_anything_is_written(
    compressed: CompressedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000))

    def must_not_write(*_: Any) -> str:
        raise AssertionError("the disk was written to")

    monkeypatch.setattr("edgesparse.store.saving.write_tensor_file", must_not_write)
    with pytest.raises(FormatError, match=r"are needed, 5\.00 kB are free"):
        save(compressed, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_the_middle_says_so(
    compressed: CompressedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, "edgesparse.json", FULL)
    with pytest.raises(FormatError, match=r"cannot write .*out: No space left on device"):
        save(compressed, tmp_path / "out")


def test_parents_are_made_and_a_file_as_parent_is_refused(
    compressed: CompressedModel, tmp_path: Path
) -> None:
    save(compressed, tmp_path / "a" / "b" / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="cannot write"):
        save(compressed, tmp_path / "file" / "out")


@pytest.mark.parametrize("exchanges", [True, False])
def test_replacing_with_and_without_an_exchange_of_names(
    compressed: CompressedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    out = tmp_path / "out"
    save(compressed, out)
    (out / "stale").write_text("")
    save(compressed, out, force=True)
    assert not (out / "stale").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_not_replaced(compressed: CompressedModel, tmp_path: Path) -> None:
    save(compressed, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(Exception, match="remove it yourself"):
        save(compressed, tmp_path / "link", force=True)


def test_room_is_asked_for_on_the_disk_a_new_path_will_be_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    usage = shutil.disk_usage(tmp_path)

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return usage._replace(free=1_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    require_space(tmp_path / "not" / "yet", 1_000_000)
    with pytest.raises(FormatError, match=r"1\.00 MB are needed, 1\.00 MB are free"):
        require_space(tmp_path / "not" / "yet", 1_000_001)
    assert asked == [tmp_path, tmp_path]


def test_what_a_killed_process_left_is_removed_and_what_another_works_on_is_not(
    tmp_path: Path,
) -> None:
    left = tmp_path / ".out.0123456789ab.partial"
    left.mkdir()
    (left / "half").write_text("half")
    other = tmp_path / ".out.but-not-one-of-ours.partial"
    other.mkdir()
    with work_directory(tmp_path / "out") as mine:
        assert not left.exists()
        with work_directory(tmp_path / "out") as second:
            assert mine.exists()
            assert second != mine
        assert not second.exists()
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
