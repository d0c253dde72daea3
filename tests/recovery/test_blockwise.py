"""Block-wise recovery: every block gets closer to the dense one, and says so; it can go on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.errors import CalibrationError, FormatError, ResumeRefused
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.recovery import BlockProgress, recover_blockwise
from edgesparse.runtime.modules import build_decoded

Kill = Callable[[int], AbstractContextManager[Callable[[BlockProgress], None]]]
TOKENS = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(0))
SHORT = {"data": TOKENS[:256], "steps": 4, "batch": 8, "windows": 16, "window": 16}


def captured() -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


def small(model: CapturedModel, bits: int = 4, scheme: str = "symmetric") -> CompressedModel:
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=es.Pattern(sparsity=0.5), method="magnitude",
        quantizer="rtn", bits=bits, group_size=16, scheme=scheme,
    )  # fmt: skip
    return es.compress(model, es.plan(model, es.Recipe((rule,))))


def test_every_block_and_the_whole_get_closer_to_the_dense_model() -> None:
    model = captured()
    before, seen = small(model), list[BlockProgress]()
    after = recover_blockwise(
        before, data=TOKENS, steps=80, lr=4e-3, batch=8, windows=64, window=16,
        progress=seen.append,
    )  # fmt: skip
    assert [step.block for step in seen] == [f"model.layers.{i}" for i in range(3)]
    assert all(step.after < 0.9 * step.before for step in seen)
    for name, packed in before.packed.items():
        assert np.array_equal(after.packed[name].codes.keep_mask, packed.codes.keep_mask)
    tokens = TOKENS[:320].reshape(20, 16)
    with torch.no_grad():
        wanted = model.loader().float()(input_ids=tokens).logits
        error = [
            float((build_decoded(m)(input_ids=tokens).logits - wanted).square().mean())
            for m in (before, after)
        ]
    assert error[1] < 0.7 * error[0]


def test_the_last_blocks_error_is_that_of_the_packed_model() -> None:
    model = captured()
    seen = list[BlockProgress]()
    after = recover_blockwise(
        small(model), data=TOKENS[:128], steps=3, batch=8, windows=8, window=16,
        progress=seen.append,
    )  # fmt: skip
    tokens = TOKENS[:128].reshape(8, 16)

    def last_hidden(module: nn.Module) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        handle = module.get_submodule("model.norm").register_forward_pre_hook(
            lambda _, args: kept.append(args[0])
        )
        with torch.no_grad():
            module(input_ids=tokens)
        handle.remove()
        return kept[0]

    wanted, found = last_hidden(model.loader().float()), last_hidden(build_decoded(after))
    error = float((found - wanted).square().mean() / wanted.square().mean())
    assert seen[-1].after == pytest.approx(error, rel=1e-3)


def test_a_model_that_is_no_chain_is_refused() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model = es.load(Pair().eval(), example_inputs=torch.zeros(1, 64))
    data = [torch.randn(4, 64)]
    with pytest.raises(CalibrationError, match="no chain of blocks"):
        recover_blockwise(small(model), data=data, steps=1)


def same(one: CompressedModel, other: CompressedModel) -> None:
    assert list(one.packed) == list(other.packed)
    for name, packed in one.packed.items():
        assert packed.spec == other.packed[name].spec
        for buffer, value in packed.buffers.items():
            assert value.tobytes() == other.packed[name].buffers[buffer].tobytes(), (name, buffer)
    assert one.metadata == other.metadata


@pytest.mark.parametrize(
    ("bits", "scheme"), [(4, "symmetric"), (3, "asymmetric"), (2, "table"), (16, "symmetric")]
)
def test_interrupted_after_any_block_it_comes_out_the_same(
    tmp_path: Path, bits: int, scheme: str, killed_after: Kill
) -> None:
    before, seen = small(captured(), bits, scheme), list[BlockProgress]()
    whole = recover_blockwise(before, **SHORT, progress=seen.append)
    for count in (1, 2, 3):
        journal, again = tmp_path / str(count), list[BlockProgress]()
        with killed_after(count) as progress:
            recover_blockwise(before, **SHORT, journal=journal, progress=progress)
        assert len(list(journal.glob("*.safetensors"))) == count
        same(whole, recover_blockwise(before, **SHORT, journal=journal, progress=again.append))
        assert again == seen


def test_finished_blocks_are_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = small(captured())
    whole = recover_blockwise(before, **SHORT, journal=tmp_path)

    def trained(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("edgesparse.recovery.blockwise._optimize", trained)
    same(whole, recover_blockwise(before, **SHORT, journal=tmp_path))


def test_a_block_that_was_damaged_is_trained_again(tmp_path: Path) -> None:
    before = small(captured())
    recover_blockwise(before, **SHORT, journal=tmp_path)
    first, second, _ = sorted(tmp_path.glob("*.safetensors"))
    first.unlink()
    content = second.read_bytes()
    second.unlink()
    second.write_bytes(content[:-1] + b"\1")
    same(recover_blockwise(before, **SHORT), recover_blockwise(before, **SHORT, journal=tmp_path))


def test_another_job_is_refused_and_the_difference_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: Kill
) -> None:
    model = captured()
    before = small(model)
    with killed_after(1) as progress:
        recover_blockwise(before, **SHORT, journal=tmp_path, progress=progress)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(words: str, compressed: CompressedModel = before, **changed: object) -> None:
        with pytest.raises(ResumeRefused, match=f"is of another job: {words} was .* and is"):
            recover_blockwise(compressed, journal=tmp_path, **(SHORT | changed))

    refused(r"model\.sha256", small(model, 3))
    weights = {name: value + 1 for name, value in model.weights().items()}
    refused(r"teacher\.sha256", replace(before, captured=replace(model, weights=lambda: weights)))
    refused(r"data\.sha256", data=TOKENS[:256].flip(0))
    refused(r"options\.steps", steps=5)
    refused(r"options\.lr", lr=2e-3)
    monkeypatch.setattr(es, "__version__", "0.0.1")
    refused(r"code\.edgesparse")
    assert kept == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_full_disk_keeps_the_blocks_that_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgesparse.journal import journal

    before, calls = small(captured()), list[Path]()
    written = journal.write_tensor_file  # type: ignore[attr-defined]

    def full(path: Path, tensors: object) -> str:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of")
            raise OSError(28, "No space left on device")
        return written(path, tensors)  # type: ignore[no-any-return]

    monkeypatch.setattr(journal, "write_tensor_file", full)
    with pytest.raises(FormatError, match="No space left on device; finished layers are kept"):
        recover_blockwise(before, **SHORT, journal=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the journal and one block
    same(recover_blockwise(before, **SHORT), recover_blockwise(before, **SHORT, journal=tmp_path))
