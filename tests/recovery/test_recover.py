"""Recovery: what is trained, what is frozen, that what is measured is what ships."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.errors import CalibrationError, ResumeRefused, UsageError
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.recovery import RecoveryProgress, recover
from edgesparse.recovery.data import draws
from edgesparse.recovery.hidden import Watched, blocks_of
from edgesparse.recovery.latent import LatentWeight
from edgesparse.recovery.loss import distance
from edgesparse.runtime.modules import build_decoded

TOKENS = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(0))
HALF = es.Pattern(sparsity=0.5)


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64, initializer_range=0.2,
        tie_word_embeddings=True,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


def small(captured: CapturedModel, bits: int = 4, **options: object) -> CompressedModel:
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=HALF, method="magnitude", quantizer="rtn",
        bits=bits, group_size=16, **options,
    )  # fmt: skip
    return es.compress(captured, es.plan(captured, es.Recipe((rule,))))


def divergence(captured: CapturedModel, compressed: CompressedModel) -> float:
    tokens = TOKENS[:320].reshape(20, 16)
    with torch.no_grad():
        wanted = captured.loader().float()(input_ids=tokens)
        return float(distance(build_decoded(compressed)(input_ids=tokens), wanted, logits=True))


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [(4, "symmetric"), (16, "symmetric"), (3, "asymmetric"), (2, "table")],
)
def test_the_divergence_falls_and_masks_and_formats_stay(
    captured: CapturedModel, bits: int, scheme: str
) -> None:
    before = small(captured, bits, scheme=scheme)
    after = recover(before, data=TOKENS, steps=60, batch=8, window=16, lr=1e-2)
    assert divergence(captured, after) < 0.7 * divergence(captured, before)
    for name, packed in before.packed.items():
        assert after.packed[name].spec == packed.spec
        assert np.array_equal(after.packed[name].codes.keep_mask, packed.codes.keep_mask)
    assert after.nbytes == before.nbytes
    assert after.metadata["recovery"]["steps"] == 60


def test_scales_keep_their_eight_bits(captured: CapturedModel) -> None:
    after = recover(small(captured), data=TOKENS, steps=5, batch=2, window=16, lr=1e-2)
    changed = 0
    for packed in after.packed.values():
        scales = torch.from_numpy(packed.codes.scales).float()
        assert torch.equal(scales, scales.bfloat16().float())
        changed += scales.numel()
    assert changed


def test_the_same_steps_give_the_same_bytes(captured: CapturedModel) -> None:
    before = small(captured)
    first, second = (
        recover(before, data=TOKENS, steps=4, batch=2, window=16, lr=1e-2) for _ in range(2)
    )
    for name, packed in first.packed.items():
        assert np.array_equal(packed.decode(), second.packed[name].decode())


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    captured: CapturedModel, tmp_path: Path
) -> None:
    before, options = small(captured), {"data": TOKENS, "batch": 2, "window": 16, "lr": 1e-2}
    whole = recover(before, steps=8, **options)

    class Interrupted(Exception):
        pass

    def stop(progress: RecoveryProgress) -> None:
        if progress.step == 5:
            raise Interrupted

    # A run that is cut short and one that goes on have to follow the same schedule, so the first
    # is given the same number of steps and stopped from outside.
    file = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        recover(before, steps=8, checkpoint=file, progress=stop, **options)
    assert file.exists()
    resumed = recover(before, steps=8, checkpoint=file, **options)
    for name, packed in whole.packed.items():
        assert np.array_equal(packed.decode(), resumed.packed[name].decode())
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_damaged_or_foreign_checkpoint_is_refused(
    captured: CapturedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"not a checkpoint at all")
    with pytest.raises(CalibrationError, match="cannot be read"):
        recover(small(captured), data=TOKENS, steps=1, batch=2, window=16, checkpoint=file)
    file.unlink()
    before, options = small(captured), {"data": TOKENS, "batch": 2, "window": 16, "seed": 0}
    recover(before, steps=1, checkpoint=file, **options)
    written = file.read_bytes()

    def refused(words: str, model: CompressedModel = before, **changed: object) -> None:
        with pytest.raises(ResumeRefused, match=f"is of another job: {words} was .* and is"):
            recover(model, steps=2, checkpoint=file, **{**options, **changed})  # type: ignore[arg-type]

    refused(r"model\.sha256", small(captured, 16))
    refused(r"teacher\.sha256", teacher=other_teacher(captured))
    refused(r"data\.sha256", data=TOKENS.flip(0))
    refused("validation", validation=TOKENS)
    refused(r"options\.seed", seed=1)
    refused("options.batches a step", accumulate=2)
    with monkeypatch.context() as patch:
        patch.setattr(es, "__version__", "0.0.1")
        refused(r"code\.edgesparse")
    assert file.read_bytes() == written
    recover(before, steps=2, checkpoint=file, **options)  # more of the same may be asked for


def other_teacher(captured: CapturedModel) -> CapturedModel:
    weights = {name: value + 0.0 for name, value in captured.weights().items()}
    next(iter(weights.values())).view(-1)[0] += 1
    return dataclasses.replace(captured, weights=lambda: weights)


def test_training_stops_when_the_held_out_text_gets_no_better(captured: CapturedModel) -> None:
    noise = torch.randint(0, 60, (64,), generator=torch.Generator().manual_seed(9))
    after = recover(
        small(captured), data=noise, validation=TOKENS, steps=900, batch=2, window=16,
        lr=3e-2, patience=1,
    )  # fmt: skip
    assert after.metadata["recovery"]["steps"] < 900


def test_a_resumed_run_remembers_what_the_held_out_text_said(
    captured: CapturedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgesparse.recovery.loop._VALIDATE_EVERY", 2)
    noise = torch.randint(0, 60, (64,), generator=torch.Generator().manual_seed(9))
    before = small(captured)
    options = {"data": noise, "validation": TOKENS, "batch": 2, "window": 16, "lr": 5e-2}
    for patience in (1, 50):  # stopping early, and going on to the end with the best kept
        seen: list[RecoveryProgress] = []
        whole = recover(before, steps=12, patience=patience, progress=seen.append, **options)
        losses = [step.loss for step in seen]

        def stop(progress: RecoveryProgress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

        file = tmp_path / f"{patience}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            recover(before, steps=12, patience=patience, checkpoint=file, progress=stop, **options)
        again: list[RecoveryProgress] = []
        resumed = recover(
            before, steps=12, patience=patience, checkpoint=file, progress=again.append, **options
        )
        assert [step.loss for step in again] == losses[3:]
        assert [step.validation for step in again] == [step.validation for step in seen[3:]]
        for name, packed in whole.packed.items():
            assert np.array_equal(packed.decode(), resumed.packed[name].decode())


def test_accumulated_batches_are_one_large_one(captured: CapturedModel) -> None:
    before = small(captured, 16)
    windows = TOKENS[:128].reshape(8, 16)
    halves = [{"input_ids": windows[i : i + 4]} for i in (0, 4)]

    def change(data: object, **options: int) -> np.ndarray:
        after = recover(before, data=data, steps=4, lr=2e-2, **options)  # type: ignore[arg-type]
        return np.concatenate(
            [
                (after.packed[name].decode() - packed.decode()).ravel()
                for name, packed in before.packed.items()
            ]
        )

    large, parts = change(windows, batch=8), change(halves, accumulate=2)
    one = change(halves[:1])
    assert np.linalg.norm(parts - large) <= 0.05 * np.linalg.norm(large)
    assert np.linalg.norm(one - large) > 0.5 * np.linalg.norm(large)


def test_a_time_limit_ends_training_and_shapes_its_schedule(
    captured: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr("edgesparse.recovery.loop.time.monotonic", lambda: float(next(clock)))
    seen: list[RecoveryProgress] = []
    after = recover(
        small(captured), data=TOKENS, minutes=0.5, batch=2, window=16, progress=seen.append
    )
    assert after.metadata["recovery"]["seconds"] >= 30
    assert len(seen) == 10
    assert [step.fraction for step in seen] == pytest.approx([i / 10 for i in range(10)])


def test_reduced_precision_is_used_where_the_processor_has_it(
    captured: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, losses = small(captured), {}
    for has in (False, True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=has: has)
        seen: list[float] = []
        after = recover(
            before, data=TOKENS, steps=20, batch=4, window=16, lr=1e-2,
            progress=lambda p, seen=seen: seen.append(p.loss),
        )  # fmt: skip
        losses[has] = seen
        assert divergence(captured, after) < 0.9 * divergence(captured, before)
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_a_model_that_is_no_language_model_learns_its_outputs() -> None:
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval()
    captured = es.load(model, example_inputs=torch.zeros(1, 32))
    before = small(captured)
    data = [torch.randn(16, 32, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    after = recover(before, data=data, steps=80, lr=4e-3)
    with torch.no_grad():
        wanted = model(data[0])
        error = [
            float((build_decoded(m)(data[0]) - wanted).square().mean()) for m in (before, after)
        ]
    assert error[1] < 0.6 * error[0]


def test_noise_replaces_its_part_of_the_tokens_the_same_in_every_run(
    captured: CapturedModel,
) -> None:
    plain, noisy, again = (
        draws(captured, TOKENS, window=50, batch=40, seed=3, noise=noise)(7)["input_ids"]
        for noise in (0.0, 0.2, 0.2)
    )
    assert torch.equal(noisy, again)
    # One in 60 of the random tokens is the one it replaces.
    assert float((noisy != plain).float().mean()) == pytest.approx(0.2 * 59 / 60, abs=0.03)
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) < 60


def test_noise_needs_a_text(captured: CapturedModel) -> None:
    with pytest.raises(UsageError, match="tokens of a text"):
        recover(small(captured), data=[TOKENS[None, :16]], steps=1, noise=0.1)


def cnn() -> tuple[CapturedModel, list[torch.Tensor]]:
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    data = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    return es.load(model, example_inputs=torch.zeros(1, 3, 8, 8)), data


def encoder() -> tuple[CapturedModel, list[torch.Tensor]]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=60, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return es.load(BertModel(config).eval()), list(TOKENS[:512].reshape(4, 8, 16))


@pytest.mark.parametrize("build", [cnn, encoder])
def test_hidden_tensors_can_be_asked_for(
    build: Callable[[], tuple[CapturedModel, list[torch.Tensor]]],
) -> None:
    captured, data = build()
    name = next(n for n, v in captured.example_inputs.items() if isinstance(v, torch.Tensor))
    kind = "input_ids" if "input_ids" in captured.example_inputs else name
    batches = [{kind: batch} for batch in data]
    rule = es.Rule(pattern=HALF, method="magnitude", quantizer="rtn", bits=4, group_size=8)
    before = es.compress(captured, es.plan(captured, es.Recipe((rule,))))

    def hidden_error(small: CompressedModel) -> float:
        dense, own = captured.loader().float(), build_decoded(small)
        watched = [Watched(module, blocks_of(module)) for module in (own, dense)]
        with torch.no_grad():
            for module in (own, dense):
                module(**batches[0])
        return float(distance(watched[0].take(), watched[1].take(), logits=False))

    error = {
        weight: hidden_error(recover(before, data=batches, steps=40, lr=4e-3, hidden=weight))
        for weight in (0.0, 4.0)
    }
    assert error[4.0] < 0.9 * min(error[0.0], hidden_error(before))


def test_hidden_tensors_of_a_model_without_blocks_cannot_be_asked_for() -> None:
    from torch import nn

    captured = es.load(nn.Linear(64, 64).eval(), example_inputs=torch.zeros(1, 64))
    with pytest.raises(UsageError, match="no list of blocks"):
        recover(small(captured), data=[torch.randn(4, 64)], steps=1, hidden=1.0)


@pytest.mark.parametrize("option", ["lr", "batch", "accumulate"])
def test_options_that_cannot_be_are_refused(captured: CapturedModel, option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} is 0, expected more than 0"):
        recover(small(captured), data=TOKENS, steps=1, window=16, **{option: 0})  # type: ignore[arg-type]


def test_no_limit_is_a_mistake(captured: CapturedModel) -> None:
    with pytest.raises(UsageError, match="needs a limit"):
        recover(small(captured), data=TOKENS)


def test_too_little_text_is_refused(captured: CapturedModel) -> None:
    with pytest.raises(CalibrationError, match="fewer than one window of 512"):
        recover(small(captured), data=TOKENS[:100], steps=1)


class TestLatentWeight:
    def test_untrained_it_is_exactly_the_packed_weight(self, captured: CapturedModel) -> None:
        models = [small(captured, bits) for bits in (4, 16)]
        models += [small(captured, 3, scheme=scheme) for scheme in ("asymmetric", "table")]
        models.append(small(captured, 3, scheme="table", table_rows=5))
        for model in models:
            for packed in model.packed.values():
                latent = LatentWeight(packed)
                assert np.array_equal(latent().detach().numpy(), packed.decode())
                again = latent.pack(packed.spec.pattern)
                assert np.array_equal(again.decode(), packed.decode())

    def test_by_hand_the_gradients_are_those_of_learned_step_sizes(
        self, captured: CapturedModel
    ) -> None:
        packed = next(iter(small(captured).packed.values()))
        latent = LatentWeight(packed)
        with torch.no_grad():
            latent.keep_mask[0, :3] = torch.tensor([True, True, False])
            scale = latent.log_scales[0, 0].exp()
            latent.values[0, :3] = torch.tensor([2.25, 90.0, 1.0]) * scale
        weights = torch.zeros_like(latent.values)
        weights[0, :3] = torch.tensor([1.0, 1.0, 1.0])
        (latent().reshape(weights.shape) * weights).sum().backward()
        assert latent.values.grad is not None
        assert latent.values.grad[0, :3].tolist() == [1.0, 0.0, 0.0]  # inside, clipped, removed
        assert latent.log_scales.grad is not None
        # d/ds of s·clamp(round(w/s)) is round(v) - v inside and the code outside; times s for log s
        wanted = ((2 - 2.25) + 7) * float(scale)
        assert float(latent.log_scales.grad[0, 0]) == pytest.approx(wanted, rel=1e-3)

    def test_by_hand_clipping_follows_the_zero(self, captured: CapturedModel) -> None:
        packed = next(iter(small(captured, scheme="asymmetric").packed.values()))
        latent = LatentWeight(packed)
        assert latent.zeros is not None
        with torch.no_grad():
            latent.keep_mask[0, :3] = True
            latent.zeros[0, 0] = -8  # codes 0 to 15 above it
            scale = latent.log_scales[0, 0].exp()
            latent.values[0, :3] = torch.tensor([14.25, -1.0, 90.0]) * scale
        weight = latent().reshape(latent.values.shape)
        assert torch.equal(weight[0, :3], torch.tensor([14.0, 0.0, 15.0]) * scale)
        weight[0, :3].sum().backward()
        assert latent.values.grad is not None
        assert latent.values.grad[0, :3].tolist() == [1.0, 0.0, 0.0]

    def test_by_hand_an_entry_learns_from_the_weights_that_take_it(
        self, captured: CapturedModel
    ) -> None:
        packed = next(iter(small(captured, 2, scheme="table").packed.values()))
        latent = LatentWeight(packed)
        assert latent.table is not None
        with torch.no_grad():
            latent.table.copy_(torch.tensor([[-1.0, 0.0, 1.0, 4.0]]))
            latent.keep_mask[0, :4] = torch.tensor([True, True, True, False])
            latent.values[0, :4] = torch.tensor([3.0, 2.75, -0.6, 3.0])
        weight = latent().reshape(latent.values.shape)
        assert weight[0, :4].tolist() == [4.0, 4.0, -1.0, 0.0]
        (weight[0, :4] * torch.tensor([1.0, 2.0, 5.0, 7.0])).sum().backward()
        deviation = float(latent.table.std())
        wanted = [5 * deviation, 0.0, 0.0, 3 * deviation]
        assert latent.log_scales.grad is not None
        assert latent.log_scales.grad[0].tolist() == pytest.approx(wanted)
