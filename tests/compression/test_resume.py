"""A compression that was interrupted goes on, and what comes out is the same to the bit."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import edgesparse as es
from edgesparse.compression import Progress, compress
from edgesparse.errors import FormatError, ResumeRefused
from edgesparse.journal import Journal
from edgesparse.model import CapturedModel, CompressedModel

Same = Callable[[CompressedModel, CompressedModel], None]
Llama = Callable[..., CapturedModel]
Kill = Callable[[int], AbstractContextManager[Callable[[Progress], None]]]


def planned(captured: CapturedModel, method: str = "admm") -> es.Plan:
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), method=method, bits=4, group_size=16)
    return es.plan(captured, es.Recipe((rule,)))


def run(captured: CapturedModel, data: object, **options: object) -> CompressedModel:
    plan = options.pop("plan", None) or planned(captured)
    return compress(captured, plan, data, windows=8, window=16, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_interrupted_after_any_tensor_it_comes_out_the_same(
    llama: Llama, tokens: torch.Tensor, same: Same, tmp_path: Path, tied: bool, killed_after: Kill
) -> None:
    captured = llama(tied=tied, layers=2)
    whole = run(captured, tokens)
    for count in range(1, len(whole.packed) + 1, 3):
        journal = tmp_path / str(count)
        with killed_after(count) as progress:
            run(captured, tokens, journal=journal, progress=progress)
        seen: list[str] = []
        again = run(captured, tokens, journal=journal, progress=lambda p, s=seen: s.append(p.name))
        same(whole, again)
        assert sorted(seen) == sorted(whole.packed)


def test_a_model_without_a_chain_resumes_too(
    unchained: CapturedModel, same: Same, tmp_path: Path, killed_after: Kill
) -> None:
    data = [{"x": torch.randn(64, 16, generator=torch.Generator().manual_seed(i))} for i in (1, 2)]
    whole = run(unchained, data)
    with killed_after(1) as progress:
        run(unchained, data, journal=tmp_path, progress=progress)
    same(whole, run(unchained, data, journal=tmp_path))


def test_finished_tensors_are_not_solved_again(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = llama()
    run(captured, tokens, journal=tmp_path)

    def solved(*_: object) -> None:
        raise AssertionError("solved again")

    monkeypatch.setattr("edgesparse.layers.solve_by_rows", solved)
    run(captured, tokens, journal=tmp_path)


def test_a_group_that_was_cut_in_two_is_solved_whole(
    llama: Llama, tokens: torch.Tensor, same: Same, tmp_path: Path
) -> None:
    captured = llama(layers=2)
    whole = run(captured, tokens, journal=tmp_path)
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) < len(whole.packed)  # q, k and v are one part
    for index, part in enumerate(parts[::2]):
        content = part.read_bytes()
        part.unlink()
        if index % 2:
            part.write_bytes(content[:-1] + b"\1")
    same(whole, run(captured, tokens, journal=tmp_path))


@pytest.mark.parametrize("cut", [1, 5, 40, 300])
def test_a_line_cut_short_is_dropped(
    llama: Llama, tokens: torch.Tensor, same: Same, tmp_path: Path, cut: int
) -> None:
    captured = llama(layers=2)
    whole = run(captured, tokens, journal=tmp_path)
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    same(whole, run(captured, tokens, journal=tmp_path))
    assert file.read_bytes().endswith(b"}\n")


def test_another_job_is_refused_and_the_difference_named(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = llama()
    run(captured, tokens, journal=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(words: str, **options: object) -> None:
        with pytest.raises(ResumeRefused, match=words):
            run(options.pop("source", captured), options.pop("data", tokens),  # type: ignore[arg-type]
                journal=tmp_path, **options)  # fmt: skip

    refused("source.sha256 was .* and is", source=llama(layers=3, tied=False))
    refused(r"plan\.tensors\[.*method was 'admm' and is 'wanda'", plan=planned(captured, "wanda"))
    refused("calibration.sha256 was", data=tokens.flip(0))
    refused("calibration.sha256 was", seed=1)
    monkeypatch.setattr(es, "__version__", "0.2.0")
    refused("code.edgesparse was '0.1.0' and is '0.2.0'")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path, {"job": 1})
    with pytest.raises(ResumeRefused, match="another process is at work"):
        Journal(tmp_path, {"job": 1})
    first.close()
    Journal(tmp_path, {"job": 1}).close()


def test_a_full_disk_keeps_what_is_finished(
    llama: Llama, tokens: torch.Tensor, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, calls = llama(), []

    def full(path: Path, tensors: object) -> str:
        calls.append(path)
        if len(calls) == 4:
            path.write_bytes(b"half of")
            raise OSError(28, "No space left on device")
        return written(path, tensors)  # type: ignore[no-any-return]

    from edgesparse.journal import journal

    written = journal.write_tensor_file  # type: ignore[attr-defined]
    monkeypatch.setattr(journal, "write_tensor_file", full)
    with pytest.raises(FormatError, match="No space left on device; finished layers are kept"):
        run(captured, tokens, journal=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # the journal and three parts
    same(run(captured, tokens), run(captured, tokens, journal=tmp_path))


def test_a_result_of_a_journal_is_saved_and_outlives_it(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path
) -> None:
    captured = llama(layers=1)
    small = run(captured, tokens, journal=tmp_path / "journal")
    small = replace(small, metadata={})
    small.save(tmp_path / "one")
    shutil.rmtree(tmp_path / "journal")
    replace(run(captured, tokens), metadata={}).save(tmp_path / "other")
    for name in ("weights.safetensors", "edgesparse.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_what_is_recorded_is_the_same_too(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path, killed_after: Kill
) -> None:
    captured = llama(layers=2)
    whole = run(captured, tokens).metadata
    with killed_after(6) as progress:
        run(captured, tokens, journal=tmp_path, progress=progress)
    again = run(captured, tokens, journal=tmp_path).metadata
    assert {**whole, "seconds": 0} == {**again, "seconds": 0}
