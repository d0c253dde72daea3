"""Export, read back, execute: every format, every kind of layer, the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from edgesparse_converters.coreml.comparison import compare
from edgesparse_converters.coreml.execute import Executor
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import program_names, read_weight, read_weights
from torch import nn

import edgesparse as es
from edgesparse.errors import ExportError, SourceError, Unsupported, UsageError
from edgesparse.exporting import EXPORTERS, inspect, run
from edgesparse.packed import FORMATS
from edgesparse.pattern import Pattern

INT4_RECORD = bytes.fromhex("efbeadde08")
FORMS = {
    (2, 0.0): ("constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"),
    (4, 0.0): ("constexpr_blockwise_shift_scale",),
    (8, 0.0): ("constexpr_blockwise_shift_scale",),
    (4, 0.5): ("constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"),
    (8, 0.5): ("constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense"),
    (16, 0.5): ("constexpr_sparse_to_dense",),
}


@pytest.mark.parametrize(
    ("bits", "sparsity"),
    [(2, 0.0), (3, 0.0), (4, 0.0), (8, 0.0), (2, 0.5), (3, 0.5), (4, 0.5), (8, 0.5), (16, 0.5)],
)
def test_every_layer_in_every_format_is_the_same_numbers(
    layers, compressed, tmp_path, bits, sparsity
):
    small = compressed(layers, bits=bits, sparsity=sparsity, group_size=0)
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert {layer.name for layer in verdict.layers} == set(small.packed)
    assert all(layer.equal for layer in verdict.layers)
    expected = FORMS.get((bits, sparsity))
    if expected:
        wide = "linear.weight"
        assert artifact.lowering[wide].startswith(" + ".join(expected))


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [("nm4", "2:4"), ("n64", "16:64"), ("column16", "16x1"), ("block16x8", "16x8")],
)
def test_layouts_for_structured_masks_keep_their_masks(tmp_path, layout, pattern):
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 64)).eval()
    captured = es.load(module, example_inputs={"input": torch.randn(3, 128)})
    shape = Pattern.parse(pattern, sparsity=0.0 if ":" in pattern else 0.5)
    rule = es.Rule(pattern=shape, method="magnitude", bits=4, group_size=32, quantizer="rtn")
    small = es.compress(captured, es.plan(captured, es.Recipe((rule,))))
    as_made = FORMATS.get(layout)
    packed = {name: as_made.pack(old.codes, pattern=shape) for name, old in small.packed.items()}
    small = replace(small, packed=packed)
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    assert artifact.lowering["0.weight"].startswith("constexpr_sparse_blockwise_shift_scale")
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)


def test_a_tied_weight_is_written_once(layers, compressed, tmp_path):
    small = compressed(layers)
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    weights = read_weights(Package(artifact.path))
    assert sorted(w.codes.shape for w in weights.values()).count((40, 24)) == 1


def test_one_column_groups_that_blocks_cannot_follow_are_repeated_and_said(
    layers, compressed, tmp_path
):
    small = compressed(layers, bits=4, group_size=16)  # 27 columns of 3x3 taps, runs of 16
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    assert any("conv.weight" in note and "16" in note for note in artifact.notes)
    assert es.validate(artifact, small).ok


class Pair(nn.Module):
    """Two layers whose names become one identifier, and whose weights are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.a_b = nn.Linear(32, 32)
        self.a = nn.ModuleDict({"b": nn.Linear(32, 32)})
        self.c = nn.Linear(32, 32)

    def forward(self, x):
        return self.c(self.a["b"](self.a_b(x)))


def pair(equal: bool) -> es.CapturedModel:
    torch.manual_seed(1)
    module = Pair().eval()
    if equal:
        for layer in (module.a["b"], module.c):
            layer.weight = nn.Parameter(module.a_b.weight.detach().clone())
    return es.load(module, example_inputs={"x": torch.randn(2, 32)})


def test_names_that_collide_stay_two_weights(compressed, tmp_path):
    small = compressed(pair(False))
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    assert len(read_weights(Package(artifact.path))) == 3
    assert es.validate(artifact, small).ok


def test_equal_weights_are_written_once(compressed, tmp_path):
    small = compressed(pair(True))
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    assert len(read_weights(Package(artifact.path))) == 1
    assert es.validate(artifact, small).ok


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("kept", [(0, 1, 1023), (1024, 2, 9)])
def test_masks_at_their_limits(compressed, tmp_path, kept, bits):
    counts = dict(zip(("a_b.weight", "a.b.weight", "c.weight"), kept, strict=True))

    def mask(name, weight):
        flat = np.zeros(weight.size, bool)
        flat[: counts[name]] = True
        return flat.reshape(weight.shape)

    small = compressed(pair(False), bits=bits, masks=mask)
    verdict = es.validate(es.export(small, path=tmp_path / "m.mlpackage"), small)
    assert verdict.ok, verdict


def test_tables_for_the_neural_engine_are_the_same_numbers(compressed, tmp_path):
    small = compressed(pair(False))
    for system in ("iOS18", "iOS26"):
        path = tmp_path / f"{system}.mlpackage"
        artifact = es.export(small, path=path, tables=True, system=system)
        assert all("lut_to_sparse" in form for form in artifact.lowering.values())
        assert es.validate(artifact, small).ok


def test_a_weight_changed_in_the_file_is_found(compressed, tmp_path):
    small = compressed(pair(False))
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    package = Package(artifact.path)
    value = program_names(package, small.packed)["c.weight"]
    before = read_weight(package, value)
    assert not compare(before, small.packed["c.weight"].codes).any
    weights = artifact.path / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(weights.read_bytes())
    codes = next(at for at in range(64, len(data), 64) if data[at : at + 5] == INT4_RECORD)
    data[codes + 64] ^= 1  # the first code of the first weight
    weights.write_bytes(data)
    verdict = es.validate(artifact.path, small)
    assert not verdict.ok
    assert sum(not layer.ok for layer in verdict.layers) == 1


def test_another_models_package_is_refused(layers, compressed, tmp_path):
    artifact = es.export(compressed(pair(False)), path=tmp_path / "m.mlpackage")
    with pytest.raises(SourceError, match="another model"):
        es.validate(artifact, compressed(layers))


def test_prediction_is_close_before_any_weight_is_touched(layers, compressed, tmp_path):
    small = compressed(layers, group_size=0)
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    predicted = EXPORTERS.get("coreml").predict_nbytes(small.plan)
    assert abs(predicted - artifact.nbytes) < 25_000


def test_inspect_and_run_speak_plain_values(layers, compressed, tmp_path):
    artifact = es.export(compressed(layers), path=tmp_path / "m.mlpackage")
    found = inspect(artifact.path)
    main = found["functions"]["main"]
    assert {i["name"] for i in main["inputs"]} == {"image", "ids"}
    assert main["outputs"] == ["image_out", "logits"]  # an input has the name image
    linear = next(w for w in main["weights"] if w["name"].startswith("linear_weight"))
    assert linear["shape"] == [24, 24]
    assert linear["dtype"] == "int4"
    assert linear["sparsity"] == pytest.approx(0.5, abs=0.01)
    inputs = {"image": np.zeros((1, 3, 8, 8), np.float32), "ids": np.zeros((1, 6), np.int32)}
    assert run(artifact.path, inputs)["logits"].shape == (1, 6, 40)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        return torch.special.i0(self.linear(x))


def test_an_operator_without_a_translation_is_named_and_nothing_is_left(compressed, tmp_path):
    captured = es.load(Spectrum().eval(), example_inputs={"x": torch.randn(32, 32)})
    with pytest.raises(Unsupported, match="i0"):
        es.export(compressed(captured), path=tmp_path / "m.mlpackage")
    assert list(tmp_path.iterdir()) == []


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("ids", torch.tensor([1, 2**40]))

    def forward(self, x):
        return self.linear(x) + (self.ids % 3).sum()


def test_integers_beyond_32_bits_are_refused_where_coremltools_would_saturate(compressed, tmp_path):
    captured = es.load(Wide().eval(), example_inputs={"x": torch.randn(2, 32)})
    with pytest.raises(Unsupported, match="ids holds integers beyond 32 bits"):
        es.export(compressed(captured), path=tmp_path / "m.mlpackage")


class Idle(Pair):
    def forward(self, x):
        return self.a_b(x)


def test_a_packed_weight_that_is_never_read_is_refused(compressed, tmp_path):
    idle = es.load(Idle().eval(), example_inputs={"x": torch.randn(2, 32)})
    small = compressed(pair(False))
    captured = replace(small.captured, skeleton=idle.skeleton)
    small = replace(small, captured=captured)
    with pytest.raises(ExportError, match="never reads"):
        es.export(small, path=tmp_path / "m.mlpackage")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": "perhaps"}, "expected bool"),
        ({"tokens": "many"}, "expected int"),
        ({"system": "iOS15"}, "iOS18 or iOS26"),
        ({"system": "iOS17", "context": 8}, "iOS17 keeps no state"),
        ({"shapes": "x"}, "NAME=1x32,1x64"),
        ({"shapes": "x=2x32"}, "at least two shapes"),
        ({"shapes": "x=2x32,4x32;y=1,2,3"}, "as many"),
        ({"shapes": "x=2x32,4"}, "different numbers of dimensions"),
        ({"shapes": "y=2x32,4x32"}, "the model takes x"),
        ({"shapes": "x=1x32,4x32"}, "must be 2 or more"),
        ({"ranges": "x=Tx32"}, "expected NAME=1xT:2..64"),
        ({"ranges": "x=T:1..4x32"}, "the lower at least 2"),
        ({"ranges": "x=T:2..4xT:2..32"}, "the same bounds"),
        ({"ranges": "y=T:2..4x32"}, "the model takes x"),
        ({"ranges": "x=T:2..4x32", "tokens": 4}, "sets the sizes"),
        ({"tokens": 0}, "at least 1"),
        ({"table": True}, "no option 'table'"),
        ({"tokens": 4}, "no language model"),
    ],
)
def test_options_that_mean_nothing(compressed, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        es.export(compressed(pair(False)), path=tmp_path / "m.mlpackage", **options)


def test_an_old_system_is_refused_by_name_or_given_plain_values(layers, compressed, tmp_path):
    small = compressed(layers)
    path = tmp_path / "old.mlpackage"
    with pytest.raises(Unsupported, match=r"iOS17 has no form for .*bitmask4.*allow-conversion"):
        es.export(small, path=path, system="iOS17")
    artifact = es.export(small, path=path, system="iOS17", allow_conversion=True)
    assert any("a mask and float16 values" in note for note in artifact.notes)
    assert set(artifact.lowering.values()) == {"constexpr_sparse_to_dense, float16"}
    assert Package(path).program.specification == 8
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    with pytest.raises(Unsupported, match=r"float16 values of conv.weight \(bitmask8\)"):
        es.export(compressed(layers, bits=8), path=tmp_path / "m.mlpackage", system="iOS17",
                  allow_conversion=True)  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "sparsity", "operation"),
    [(8, 0.0, "affine_dequantize, int8"), (4, 0.0, "affine_dequantize, int8"),
     (16, 0.5, "sparse_to_dense, float16")],
)  # fmt: skip
def test_what_an_old_system_has_a_form_for_is_written_in_it(
    layers, compressed, tmp_path, bits, sparsity, operation
):
    small = compressed(layers, bits=bits, sparsity=sparsity, group_size=0)
    artifact = es.export(small, path=tmp_path / "m.mlpackage", system="iOS17")
    assert set(artifact.lowering.values()) == {f"constexpr_{operation}"}
    assert any("8-bit integers of the same values" in note for note in artifact.notes) == (bits < 8)
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)


class Sizes(nn.Module):
    """Takes images of any size, and as many tokens as there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 32, 3, padding=1)
        self.linear = nn.Linear(32, 64)

    def forward(self, image, rows):
        x = torch.relu(self.conv(image)).mean(3).transpose(1, 2)
        return self.linear(x) + rows[..., None]


def test_an_input_may_have_a_few_shapes_and_no_others(compressed, tmp_path):
    inputs = {"image": torch.randn(1, 4, 8, 8), "rows": torch.randn(1, 8)}
    small = compressed(es.load(Sizes().eval(), example_inputs=inputs))
    shapes = "image=1x4x8x8,1x4x16x8,1x4x12x20;rows=1x8,1x16,1x12"
    artifact = es.export(small, path=tmp_path / "m.mlpackage", shapes=shapes)
    listed = Package(artifact.path).program.shapes
    assert listed["image"] == ((1, 4, 12, 20), (1, 4, 16, 8), (1, 4, 8, 8))
    assert listed["rows"] == ((1, 12), (1, 16), (1, 8))
    verdict = es.validate(artifact, small, calls=3)
    assert verdict.ok, verdict
    image, rows = np.zeros((1, 4, 12, 8), np.float32), np.zeros((1, 12), np.float32)
    with pytest.raises(UsageError, match=r"\(1, 4, 12, 8\), expected one of \(1, 4, 12, 20\)"):
        run(artifact.path, {"image": image, "rows": rows})


def test_sizes_may_be_open_between_bounds(compressed, tmp_path):
    inputs = {"image": torch.randn(1, 4, 8, 8), "rows": torch.randn(1, 8)}
    small = compressed(es.load(Sizes().eval(), example_inputs=inputs))
    ranges = "image=1x4xH:4..20xW:6..30;rows=1xH:4..20"
    artifact = es.export(small, path=tmp_path / "m.mlpackage", ranges=ranges)
    program = Package(artifact.path).program
    assert program.ranges["image"] == ((1, 1), (4, 4), (4, 20), (6, 30))
    assert program.ranges["rows"] == ((1, 1), (4, 20))
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    executor = Executor(artifact.path)
    image, rows = np.zeros((1, 4, 20, 6), np.float32), np.zeros((1, 20), np.float32)
    assert next(iter(executor.run({"image": image, "rows": rows}).values())).shape == (1, 20, 64)
    with pytest.raises(UsageError, match=r"shape \(1, 4, 20, 5\), expected"):
        executor.run({"image": image[..., :5], "rows": rows})


def test_a_package_runs_in_half_precision_as_declared(compressed, tmp_path):
    small = compressed(pair(False))
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    x = {"x": np.full((2, 32), 1.0 + 2**-12, np.float32)}  # not a float16: rounded to 1
    one = {"x": np.ones((2, 32), np.float32)}
    half = Executor(artifact.path, precision="float16")
    full = Executor(artifact.path, precision="float32")
    (name,) = half.run(x)
    np.testing.assert_array_equal(half.run(x)[name], half.run(one)[name])
    assert np.any(full.run(x)[name] != full.run(one)[name])
