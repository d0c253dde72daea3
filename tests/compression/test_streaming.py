"""With a memory limit the model is never whole in memory, and the same comes out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.calibrate.activations import Activations
from edgesparse.calibrate.residence import Streamed, outermost_blocks
from edgesparse.compression import compress
from edgesparse.errors import CalibrationError, UsageError
from edgesparse.footprint import LOADED_LATER, Footprint, fit_in_memory
from edgesparse.memory import give_back, resident_nbytes
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.preflight import room_for

Same = Callable[[CompressedModel, CompressedModel], None]
Llama = Callable[..., CapturedModel]
PLENTY = 1 << 40


def run(captured: CapturedModel, data: object, method: str, **options: object) -> CompressedModel:
    rule = es.Rule(pattern=es.Pattern(sparsity=0.5), method=method, bits=4, group_size=16)
    embedding = es.Rule(kind=es.model.TensorKind.EMBEDDING, bits=4, group_size=16, quantizer="rtn")
    plan = es.plan(captured, es.Recipe((embedding, rule)))
    return compress(captured, plan, data, windows=12, window=16, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["wanda", "admm"])
def test_the_same_comes_out(
    llama: Llama, tokens: torch.Tensor, same: Same, tmp_path: Path, tied: bool, method: str
) -> None:
    captured = llama(tied=tied)
    whole = run(captured, tokens, method)
    same(whole, run(captured, tokens, method, memory_limit=PLENTY))
    same(whole, run(captured, tokens, method, memory_limit=PLENTY, journal=tmp_path / "first"))
    same(whole, run(captured, tokens, method, memory_limit=PLENTY, journal=tmp_path / "first"))


def test_a_run_is_gone_on_with_in_batches_of_its_own_size(
    llama: Llama, tokens: torch.Tensor, same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began with less memory to spare than there is now; sums depend on the batches."""
    captured, journal = llama(), tmp_path / "journal"

    def narrow(*arguments: object, **options: object) -> Footprint:
        return replace(room_for(*arguments, **options), batch_size=2)  # type: ignore[arg-type]

    with monkeypatch.context() as then:
        then.setattr("edgesparse.compression.room_for", narrow)
        first = run(captured, tokens, "wanda", memory_limit=PLENTY, journal=journal)
    same(first, run(captured, tokens, "wanda", memory_limit=PLENTY, journal=journal))


def test_one_block_is_in_memory_at_a_time(
    llama: Llama, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, most = llama(layers=5), 0
    bring = Streamed.bring

    def watched(self: Streamed, modules: object, device: torch.device) -> None:
        nonlocal most
        bring(self, modules, device)  # type: ignore[arg-type]
        held = sum(p.numel() for p in self._model.parameters() if not p.is_meta)
        most = max(most, held)

    monkeypatch.setattr(Streamed, "bring", watched)
    run(captured, tokens, "wanda", memory_limit=PLENTY)
    block = sum(t.numel for t in captured.tensors if t.name.startswith("model.layers.0."))
    rest = sum(t.numel for t in captured.tensors if not t.name.startswith("model.layers."))
    assert 0 < most <= block + rest


def test_what_a_block_freed_goes_back_to_the_system(
    llama: Llama, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, blocks = list[None](), 5
    monkeypatch.setattr("edgesparse.calibrate.residence.give_back", lambda: given.append(None))
    run(llama(layers=blocks), tokens, "wanda")
    assert not given
    run(llama(layers=blocks), tokens, "wanda", memory_limit=PLENTY)
    assert len(given) >= blocks
    give_back()  # there is nothing to give, or no glibc: no error


def test_a_limit_that_cannot_be_kept_is_refused_before_work(
    llama: Llama, tokens: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"memory limit 10\.00 MB: the largest block takes"):
        run(llama(), tokens, "wanda", memory_limit=10_000_000, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_a_model_without_a_chain_is_refused(unchained: CapturedModel) -> None:
    data = [{"x": torch.randn(8, 16)}]
    with pytest.raises(CalibrationError, match="no chain of blocks"):
        run(unchained, data, "wanda", memory_limit=PLENTY)


def test_less_memory_means_smaller_batches_and_more_on_disk(llama: Llama) -> None:
    model = llama().skeleton()
    held = resident_nbytes() + LOADED_LATER
    sizes = [fit_in_memory(model, {}, {}, 10_000, 8, held + room) for room in (10**10, 10**8)]
    assert sizes[0].batch_size == 8
    assert sizes[1].batch_size < 8
    assert 0 <= sizes[1].activations_nbytes < sizes[0].activations_nbytes  # type: ignore[operator]


def test_a_vocabulary_is_not_solved_beside_the_statistics_of_a_blocks_wide_layer(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesparse.footprint.resident_nbytes", lambda: 0)

    def left(inner: int) -> int | None:
        captured = llama(vocabulary=60_000, inner=inner)
        plan = es.plan(captured, es.Recipe((es.Rule(bits=4, group_size=16, quantizer="rtn"),)))
        room = room_for(
            captured, plan, device="cpu", window=16, memory_limit=1 << 30, measured=True
        )
        return room.activations_nbytes

    # 115 MB for the vocabulary, 17 MB at most for a block; of these 4 MB are statistics.
    assert left(inner=48) == left(inner=1024)


@pytest.mark.parametrize("limit", [0, 100, 10_000, None])
def test_activations_come_back_as_they_were(limit: int | None, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool] * 3
    kept = [torch.randn(i % 4, 5, generator=generator).to(d) for i, d in enumerate(dtypes)]
    activations = Activations(limit, tmp_path)
    for value in kept:
        activations.append(value)
    for i in (3, 0, 11):
        kept[i] = torch.randn(i + 1, 7, generator=generator)
        activations[i] = kept[i]
    assert len(activations) == len(kept)
    assert all(torch.equal(activations[i], value) for i, value in enumerate(kept))
    assert limit is None or activations.held_nbytes <= limit
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_activations_find_no_room(tmp_path: Path) -> None:
    activations = Activations(0, tmp_path / "missing")
    with pytest.raises(CalibrationError, match="cannot be put aside"):
        activations.append(torch.zeros(3))


def test_outermost_lists_are_the_blocks() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "blocks": nn.ModuleList([inner, nn.Linear(2, 2)]),
         "single": nn.Sequential(nn.Linear(2, 2))}
    )  # fmt: skip
    assert outermost_blocks(model) == list(model["blocks"])  # type: ignore[call-overload]
