"""Core AI: the solver's numbers in an asset, and what Apple's runtime computes from them here."""

import importlib.util
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from edgesparse_converters.coreai.session import parse_type
from edgesparse_converters.coreai.validation import read_weight
from torch import nn

import edgesparse as es
from edgesparse.errors import SourceError, UsageError
from edgesparse.exporting import EXPORTERS, inspect, run
from edgesparse.packed import FORMATS
from edgesparse.pattern import Pattern

needs_wheels = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in EXPORTERS.get("coreai").packages),
    reason="coreai-core and coreai-torch are not installed: pip install 'edgesparse[coreai]'",
)


class Small(nn.Module):
    """An embedding, a linear layer, a convolution whose groups are no blocks, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up = nn.Embedding(64, 64), nn.Linear(64, 96)
        self.conv = nn.Conv1d(96, 64, 3, padding=1)
        self.head = nn.Linear(64, 64, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = torch.tanh(self.up(self.tokens(ids)))
        return {"logits": self.head(self.conv(x.transpose(1, 2)).transpose(1, 2)), "hidden": x}


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    return es.load(Small().eval(), example_inputs={"ids": torch.arange(12)[None]})


def compress(captured, bits, sparsity, **options):
    if bits < 16:
        options = {"quantizer": "rtn", **options}
    pattern = Pattern(sparsity=sparsity) if sparsity else Pattern()
    rule = es.Rule(bits=bits, pattern=pattern, method="magnitude", **options)
    return es.compress(captured, es.plan(captured, es.Recipe((rule,)), target="coreai"))


@needs_wheels
@pytest.mark.parametrize(
    ("bits", "sparsity", "options"),
    [
        (4, 0.5, {"group_size": 32}),
        (4, 0.0, {"group_size": 32, "scheme": "asymmetric"}),
        (3, 0.5, {"scheme": "table"}),
        (8, 0.5, {"group_size": 0}),
        (2, 0.0, {"group_size": 32}),
        (16, 0.5, {}),
        (4, 0.0, {"scheme": "table", "table_rows": 40}),
        (4, 0.5, {"scheme": "table", "table_rows": 16}),
        (3, 0.5, {"scheme": "asymmetric", "group_size": 32}),
    ],
)
def test_every_form_is_the_same_numbers(captured, tmp_path, bits, sparsity, options):
    small = compress(captured, bits, sparsity, **options)
    artifact = es.export(small, path=tmp_path / "m.aimodel")
    assert artifact.target == "coreai"
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert len(verdict.layers) == len(small.packed) == 3
    assert all(layer.equal for layer in verdict.layers)
    predicted = EXPORTERS.get("coreai").predict_nbytes(small.plan)
    assert predicted == pytest.approx(artifact.nbytes, rel=0.1)


@needs_wheels
def test_what_is_in_an_asset_and_what_it_takes(captured, tmp_path):
    small = compress(captured, 4, 0.5, group_size=32)
    path = es.export(small, path=tmp_path / "m.aimodel").path
    found = inspect(path)
    main = found["functions"]["main"]
    assert main["inputs"] == [{"name": "ids", "type": "1x12xsi32"}]
    assert [named["name"] for named in main["outputs"]] == ["logits", "hidden"]
    assert found["operators"]["coreai.sparse_with_bitmask_to_dense"] == 3  # tied weights once
    up = next(weight for weight in found["weights"] if weight["name"] == "up.weight")
    assert (up["shape"], up["dtype"], up["sparsity"]) == ([96, 64], "uint4", 0.5)
    # a bit of mask and half a code for each of 96 x 64 weights, a float32 for 32 of them, 16 codes
    assert up["nbytes"] == 96 * 64 // 8 + 96 * 64 // 4 + 4 * 96 * 2 + 16
    assert run(path, {"ids": np.arange(12)[None]})["logits"].shape == (1, 12, 64)
    with pytest.raises(UsageError, match=r"\(1, 11\), expected \(1, 12\)"):
        run(path, {"ids": np.zeros((1, 11))})
    with pytest.raises(UsageError, match="takes ids; given tokens"):
        run(path, {"tokens": np.zeros((1, 12))})


@needs_wheels
def test_other_weights_and_damaged_assets_are_told(captured, tmp_path):
    small = compress(captured, 4, 0.5, group_size=32)
    path = es.export(small, path=tmp_path / "m.aimodel").path
    name, packed = next(iter(small.packed.items()))
    codes = packed.codes
    changed = replace(codes, values=np.where(codes.values == 3, 2, codes.values).astype(np.int8))
    other = FORMATS.get(packed.spec.name).pack(changed, pattern=packed.spec.pattern)
    verdict = es.validate(path, replace(small, packed={**small.packed, name: other}))
    assert [layer.name for layer in verdict.layers if not layer.ok] == [name]
    program = path / "main.mlirb"
    whole = program.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"ML\xefR" + bytes(64)):
        program.write_bytes(damaged)
        with pytest.raises(SourceError, match="Core AI cannot constants it"):
            es.validate(path, small)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(SourceError, match="Core AI cannot describe it"):
        inspect(path)


def test_types_are_read_as_the_compiler_writes_them():
    assert parse_type("f32") == parse_type("f32")
    assert (parse_type("3x4xui1").dtype, parse_type("3x4xui1").shape) == ("uint1", (3, 4))
    assert parse_type("?x8xsi32").shape == (None, 8)
    for wrong in ("3xf8E4M3FN", "axf32", "", "3x"):
        with pytest.raises(SourceError, match="not known here"):
            parse_type(wrong)


def test_a_weight_is_read_from_its_constants():
    """Kept codes -8, 7 and 1 of a row of four, scales of 0.5 and 2 for two columns each."""
    parts = {
        "mask": np.array([[1, 0, 1, 1]], np.uint8),
        "indices": np.array([0, 15, 9], np.uint8),
        "table": np.arange(-8, 8, dtype=np.int8).reshape(1, 16, 1),
        "scales": np.array([[0.5, 2.0]], np.float32),
    }
    weight = read_weight("w", parts)
    assert weight.decode().tolist() == [[-4.0, 0.0, 14.0, 2.0]]
    shifted = {"numbers": np.array([[-8, 7, 1, 0]], np.int8), "scales": parts["scales"]}
    shifted["zeros"] = np.array([[-8, 1]], np.int8)
    assert read_weight("w", shifted).decode().tolist() == [[0.0, 7.5, 0.0, -2.0]]
    shifted["mask"] = np.array([[0, 1, 1, 1]], np.uint8)
    shifted["numbers"] = np.array([7, 1, 0], np.int8)
    assert read_weight("w", shifted).decode().tolist() == [[0.0, 7.5, 0.0, -2.0]]
    tables = {
        "mask": np.array([[1, 0], [1, 1]], np.uint8),
        "numbers": np.array([1, 0, 1], np.uint8),
        "table": np.array([2.0, 3.0, 5.0, 7.0], np.float32).reshape(2, 1, 2, 1),
    }
    assert read_weight("w", tables).decode().tolist() == [[3.0, 0.0], [5.0, 7.0]]
    with pytest.raises(SourceError, match="contradict"):
        read_weight("w", parts | {"indices": np.zeros(2, np.uint8)})
    with pytest.raises(SourceError, match="no numbers of w; it holds mask"):
        read_weight("w", {"mask": parts["mask"]})
