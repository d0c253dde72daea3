"""A whole model as one Core ML delegate: exact in the file, run by the host executor."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgesparse_converters.executorch.coreml_delegate import is_alone, open_delegate
from edgesparse_converters.executorch.exporter import EXPORTER
from edgesparse_converters.executorch.flattened import unflatten
from edgesparse_converters.executorch.program import read_program
from torch import Tensor, nn

import edgesparse as es
from edgesparse.errors import SourceError, Unsupported, UsageError
from edgesparse.exporting import Artifact, inspect, run
from edgesparse.model import CompressedModel
from edgesparse.runtime.modules import build_decoded

Compress = Callable[..., CompressedModel]


class Both(nn.Module):
    """Tokens and a picture; weights of every kind, a mask whose groups do not divide the row."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 64)
        self.first = nn.Linear(64, 48)
        self.second = nn.Linear(48, 16, bias=False)
        self.picture = nn.Conv2d(3, 16, 3)

    def forward(self, ids: Tensor, picture: Tensor) -> dict[str, Tensor]:
        seen = self.picture(picture).relu().mean((2, 3))
        said = self.second(self.first(self.words(ids)).relu()).mean(1)
        return {"seen": seen, "together": said + seen.sin()}


EXAMPLE = {"ids": torch.arange(10)[None] * 4, "picture": torch.ones(1, 3, 8, 8)}


@pytest.fixture(scope="module")
def small(compress: Compress) -> CompressedModel:
    torch.manual_seed(0)
    return compress(
        Both(),
        EXAMPLE,
        words__weight={},
        first__weight={"sparsity": 0.5},
        second__weight={"bits": 3, "group_size": 16, "sparsity": 0.7},
        picture__weight={"bits": 8, "group_size": 27, "sparsity": 0.5},
    )


@pytest.fixture(scope="module")
def written(small: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("delegate") / "both.pte"
    return es.export(small, path=path, lowering="coreml")


def test_the_delegate_holds_the_solvers_numbers_and_computes_with_them(
    small: CompressedModel, written: Artifact
) -> None:
    verdict = es.validate(written, small)
    assert verdict.ok, verdict
    assert {layer.name for layer in verdict.layers} == set(small.packed)
    assert all(layer.equal for layer in verdict.layers)
    assert verdict.notes[0].startswith("2 inputs, random, seed 0; executed on this host")
    assert written.peak_nbytes is None
    assert all(form.startswith("Core ML: constexpr_") for form in written.lowering.values())
    assert written.nbytes < 30_000  # 8,400 weights: 34 kB if one of them were float32


def test_the_file_runs_like_any_other(small: CompressedModel, written: Artifact) -> None:
    generator = np.random.default_rng(1)
    ids = generator.integers(0, 40, (1, 10))
    picture = generator.standard_normal((1, 3, 8, 8)).astype(np.float32)
    found = run(written.path, {"picture": picture, "ids": ids})
    with torch.no_grad():
        expected = build_decoded(small)(torch.from_numpy(ids), torch.from_numpy(picture))
    assert set(found) == {"seen", "together"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="the program takes"):
        run(written.path, {"picture": picture, "ids": ids[:, :4].copy()})


def test_one_delegate_and_nothing_else(written: Artifact) -> None:
    program = read_program(written.path)
    assert is_alone(program)
    forward = inspect(written.path)["methods"]["forward"]
    assert forward["delegates"] == {"CoreMLBackend": 1}
    assert forward["memory"] == {}
    with open_delegate(program) as delegate:
        types = [o.type for o in delegate.package.program.functions["main"].block.operations]
    assert {"constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"} <= set(types)


def test_another_models_weights_are_told_apart(
    small: CompressedModel, written: Artifact, compress: Compress
) -> None:
    torch.manual_seed(1)
    specs = {name.replace(".", "__"): packed.spec for name, packed in small.packed.items()}
    options = {n: {"bits": s.bits, "group_size": s.group_size} for n, s in specs.items()}
    other = compress(Both(), EXAMPLE, **options)
    verdict = es.validate(written, other)
    assert not verdict.ok
    assert not any(layer.ok for layer in verdict.layers)


def test_a_flipped_bit_of_a_weight_is_found(
    small: CompressedModel, written: Artifact, tmp_path: Path
) -> None:
    data = bytearray(written.path.read_bytes())
    codes = small.packed["words.weight"].codes.values.reshape(-1).astype(np.uint8) & 15
    stored = (codes[0::2] | codes[1::2] << 4).tobytes()
    place = data.find(stored)
    assert place > 0
    data[place + 100] ^= 1
    path = tmp_path / "flipped.pte"
    path.write_bytes(data)
    assert [c.name for c in es.validate(path, small).layers if not c.ok] == ["words.weight"]


def test_what_it_cannot_be_is_refused(small: CompressedModel, tmp_path: Path) -> None:
    path = tmp_path / "x.pte"
    for option in ({"cases": 1}, {"apart": True}, {"activations": "int8"}, {"cache": "int8"}):
        with pytest.raises(UsageError, match="no other option but tokens or context"):
            es.export(small, path=path, lowering="coreml", **option)
    with pytest.raises(UsageError, match="language models"):
        es.export(small, path=path, lowering="coreml", context=64)
    with pytest.raises(
        UsageError, match="prefill=8 with lowering=coreml: a prompt is read token by"
    ):
        es.export(small, path=path, lowering="coreml", context=64, prefill=8)
    with pytest.raises(UsageError, match="prefill=8 without context"):
        es.export(small, path=path, prefill=8)
    with pytest.raises(UsageError, match="coreml for the whole model"):
        es.export(small, path=path, lowering={"first*": "coreml"})
    assert not path.exists()


class Crossed(nn.Module):
    """What it returns first is computed last, and one of its inputs matters to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 16)

    def forward(self, x: Tensor, unused: Tensor | None = None) -> dict[str, Tensor]:
        early = self.first(x)
        return {"late": self.second(early.relu()), "early": early}


def test_outputs_keep_their_names_whatever_order_the_delegate_gives_them(
    tmp_path: Path, compress: Compress
) -> None:
    example = {"x": torch.ones(1, 32), "unused": torch.ones(1, 2)}
    small = compress(Crossed(), example, first__weight={}, second__weight={"sparsity": 0.5})
    artifact = es.export(small, path=tmp_path / "crossed.pte", lowering="coreml")
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    x = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32)
    found = run(artifact.path, {"x": x, "unused": np.zeros((1, 2), np.float32)})
    expected = build_decoded(small)(torch.from_numpy(x))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    """A Llama of two layers: shared heads, tied, half of it removed."""
    import transformers as tf

    config = tf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    tf.LlamaForCausalLM(config).save_pretrained(folder)
    captured = es.load(folder)
    rule = es.Rule(
        pattern=es.Pattern(sparsity=0.5), method="magnitude", bits=4, group_size=32, quantizer="rtn"
    )
    return es.compress(captured, es.plan(captured, recipe=es.Recipe((rule,))), calibration=None)


def test_a_language_model_without_a_cache(language_model: CompressedModel, tmp_path: Path) -> None:
    path = tmp_path / "whole.pte"
    artifact = es.export(language_model, path=path, lowering="coreml", tokens=12)
    verdict = es.validate(artifact, language_model)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    assert is_alone(read_program(path))


def test_a_language_model_that_keeps_its_cache_in_the_delegate(
    language_model: CompressedModel, tmp_path: Path
) -> None:
    path = tmp_path / "state.pte"
    artifact = es.export(language_model, path=path, lowering="coreml", context=16)
    assert any("token by token" in note for note in artifact.notes)
    program = read_program(path)
    assert is_alone(program)
    assert "prefill" not in program.methods
    assert inspect(path)["methods"]["forward"]["memory"] == {}  # nothing is kept outside
    verdict = es.validate(artifact, language_model)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    # The same tokens, one by one through the state, and all at once in torch.
    tokens = np.arange(10) * 5 % 64
    with EXPORTER.open_language_model(path) as model:
        assert model.context == 16
        found = np.concatenate([model.read(tokens[:4]), model.read(tokens[4:])])
        model.reset()
        np.testing.assert_array_equal(model.read(tokens[:1]), found[:1])
    with torch.no_grad():
        logits = build_decoded(language_model)(input_ids=torch.from_numpy(tokens)[None]).logits
    np.testing.assert_allclose(found, logits[0].numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_tied_weight_is_in_the_file_once(
    language_model: CompressedModel, tmp_path: Path, sparsity: float
) -> None:
    """The traced program has it under both its names, and reads one: the other stood beside it."""
    rule = es.Rule(
        pattern=es.Pattern(sparsity=sparsity), method="magnitude", bits=4, group_size=32,
        quantizer="rtn",
    )  # fmt: skip
    captured = language_model.captured
    tied = es.compress(captured, es.plan(captured, recipe=es.Recipe((rule,))))
    artifact = es.export(tied, path=tmp_path / "tied.pte", lowering="coreml", tokens=8)
    program = read_program(artifact.path)
    assert program.constants_nbytes == 0
    verdict = es.validate(artifact, tied)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)


class Fractions(nn.Module):
    """An operator that coremltools has no translation for, nor torch a decomposition."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.linear(x))


def test_an_operator_core_ml_does_not_have_is_named(tmp_path: Path, compress: Compress) -> None:
    small = compress(Fractions(), {"x": torch.ones(1, 64)}, linear__weight={"sparsity": 0.5})
    with pytest.raises(Unsupported, match="bessel_j0"):
        es.export(small, path=tmp_path / "x.pte", lowering="coreml")
    assert list(tmp_path.iterdir()) == []


def flattened(nodes: object, files: bytes = b"hello") -> memoryview:
    return memoryview(files + json.dumps({"nodes": nodes}).encode()[::-1])


def a_file(name: str, start: Any = 0, size: Any = 5) -> dict[str, Any]:
    place = {"offset": start, "size": size}
    return {"name": name, "kind": 0, "dataRegion": place, "children": {}}


def a_folder(**children: Any) -> dict[str, Any]:
    return {"name": "x", "kind": 1, "dataRegion": {"offset": 0, "size": 0}, "children": children}


def test_a_folder_by_hand(tmp_path: Path) -> None:
    nodes = [a_file("a", 0, 2), a_file("b", 2, 3), a_folder(b=1), a_folder(a=0, inner=2)]
    unflatten(flattened(nodes), tmp_path, name="x")
    assert (tmp_path / "a").read_bytes() == b"he"
    assert (tmp_path / "inner" / "b").read_bytes() == b"llo"


@pytest.mark.parametrize(
    "nodes",
    [
        [], {}, "x", [3], [None], [a_folder(a=5)], [a_folder(a=-1)], [a_folder(a=0)],
        [a_folder(a="0")], [a_file("a", 3, 3), a_folder(a=0)], [a_file("a", -1, 1), a_folder(a=0)],
        [a_file("a", "0", 1), a_folder(a=0)], [a_file("a"), a_folder(**{"..": 0})],
        [a_file("a"), a_folder(**{"/etc/x": 0})], [a_file("a"), a_folder(**{"c:\\x": 0})],
        [a_file("a"), a_folder(a=0, b=0)], [a_file("a"), a_file("b"), a_folder(a=0, b=1)],
        [a_folder(a=1), a_folder(a=0)], [{"kind": 1}], [{"kind": 7, "children": {}}],
        [a_file("a"), a_folder(**{"n" * 300: 0})],
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(tmp_path: Path, nodes: object) -> None:
    with pytest.raises(SourceError, match="its folder of files is damaged"):
        unflatten(flattened(nodes), tmp_path, name="x")


def test_bytes_that_are_no_folder(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    for data in (b"", b"{", b"x" * 5000, deep[::-1], b'{"nodes": 1}'[::-1], b"{}"):
        with pytest.raises(SourceError, match="damaged"):
            unflatten(memoryview(data), tmp_path, name="x")


def test_a_delegate_cut_or_changed_ends_in_an_error(
    small: CompressedModel, written: Artifact, tmp_path: Path
) -> None:
    data = written.path.read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged.pte"
    for _ in range(50):
        changed = bytearray(data)
        for place in generator.integers(64, len(data), 3):
            changed[place] = generator.integers(0, 256)
        path.write_bytes(changed)
        with suppress(SourceError, Unsupported, UsageError):
            es.validate(path, small, calls=1)
