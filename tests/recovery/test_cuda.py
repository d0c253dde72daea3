"""Recovery on a CUDA device: recorded steps, the losses of the CPU, masks that grow."""

from pathlib import Path

import numpy as np
import pytest
import torch

import edgesparse as es
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.recovery import recover, recover_blockwise
from edgesparse.recovery.backward import Backward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOKENS = torch.randint(0, 60, (4000,), generator=torch.Generator().manual_seed(0))
RUN = {"data": TOKENS, "batch": 8, "window": 32, "lr": 4e-3}


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64, initializer_range=0.2,
        tie_word_embeddings=True,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def small(captured: CapturedModel) -> CompressedModel:
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=es.Pattern.parse("16x1", sparsity=0.5),
        method="magnitude", quantizer="rtn", bits=4, group_size=32,
    )  # fmt: skip
    return es.compress(captured, es.plan(captured, es.Recipe((rule,))))


@pytest.mark.parametrize("gradual", [0.0, 0.5])
def test_the_loss_falls_as_on_the_cpu(small: CompressedModel, gradual: float) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        after = recover(small, steps=80, device=device, gradual=gradual, **RUN)
        losses[device] = after.metadata["recovery"]["loss"]
        assert after.sparsity == small.sparsity
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.1)


def test_steps_are_recorded_and_replayed(
    small: CompressedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager: list[int] = []
    run = Backward._eager
    monkeypatch.setattr(Backward, "_eager", lambda s, b: (eager.append(1), run(s, b))[1])
    recover(small, steps=20, device="cuda", **RUN)
    assert len(eager) == 4  # three warm-ups and the recording


def test_an_interrupted_run_goes_on(small: CompressedModel, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(progress: object) -> None:
        if getattr(progress, "step", 0) == 15:
            raise Interrupted

    file = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        recover(small, steps=40, device="cuda", checkpoint=file, progress=stop, **RUN)
    resumed = recover(small, steps=40, device="cuda", checkpoint=file, **RUN)
    whole = recover(small, steps=40, device="cuda", **RUN)
    assert resumed.metadata["recovery"]["steps"] == 40
    for name, packed in whole.packed.items():
        # Eager and recorded steps may add in another order.
        error = np.abs(packed.decode() - resumed.packed[name].decode()).mean()
        assert error < 0.05 * np.abs(packed.decode()).mean()


def test_blockwise_errors_are_those_of_the_cpu(small: CompressedModel) -> None:
    after: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, errors in after.items():
        recover_blockwise(
            small, data=TOKENS, steps=30, window=32, windows=32, device=device,
            progress=lambda p, errors=errors: errors.append(p.after),
        )  # fmt: skip
    assert after["cuda"] == pytest.approx(after["cpu"], rel=0.05)
