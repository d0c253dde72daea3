"""Block-wise recovery: every block gets closer to the dense one, and says so."""

import numpy as np
import pytest
import torch
from torch import nn

import edgesparse as es
from edgesparse.errors import CalibrationError
from edgesparse.model import CapturedModel, CompressedModel, TensorKind
from edgesparse.recovery import BlockProgress, recover_blockwise
from edgesparse.runtime.modules import build_decoded

TOKENS = torch.randint(0, 60, (2000,), generator=torch.Generator().manual_seed(0))


def captured() -> CapturedModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=60, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return es.load(LlamaForCausalLM(config).eval())


def small(model: CapturedModel) -> CompressedModel:
    rule = es.Rule(
        kind=TensorKind.LINEAR, pattern=es.Pattern(sparsity=0.5), method="magnitude",
        quantizer="rtn", bits=4, group_size=16,
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
