"""Asymmetric codes and tables: the solver's zeros and entries, bit for bit, in a package."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from edgesparse_converters.coreml.comparison import compare
from edgesparse_converters.coreml.forming import form_of
from edgesparse_converters.coreml.forms import DEFAULT_CHOICE
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.prediction import weight_nbytes
from edgesparse_converters.coreml.readback import program_names, read_weight

import edgesparse as es
from edgesparse.packed import FORMATS, Codes, table_count
from edgesparse.pattern import Pattern

SHIFT = "constexpr_blockwise_shift_scale"
SPARSE_SHIFT = "constexpr_sparse_blockwise_shift_scale"
FORMS = {
    ("asymmetric", 2, 0.0): (SHIFT, "constexpr_lut_to_dense"),
    ("asymmetric", 2, 0.7): (SHIFT, "constexpr_lut_to_sparse", "constexpr_sparse_to_dense"),
    ("asymmetric", 4, 0.0): (SHIFT,),
    ("asymmetric", 4, 0.5): (SPARSE_SHIFT, "constexpr_sparse_to_dense"),
    ("asymmetric", 8, 0.5): (SPARSE_SHIFT, "constexpr_sparse_to_dense"),
    ("table", 2, 0.0): ("constexpr_lut_to_dense",),
    ("table", 3, 0.5): ("constexpr_lut_to_sparse", "constexpr_sparse_to_dense"),
    ("table", 4, 0.0): ("constexpr_lut_to_dense",),
    ("table", 4, 0.5): ("constexpr_lut_to_sparse", "constexpr_sparse_to_dense"),
}


def small_model(layers, scheme, bits, sparsity, **options):
    rule = es.Rule(
        scheme=scheme, bits=bits, quantizer="rtn", method="magnitude",
        pattern=Pattern(sparsity=sparsity), **options,
    )  # fmt: skip
    return es.compress(layers, es.plan(layers, es.Recipe((rule,)), target="coreml"))


@pytest.fixture(scope="module")
def wide():
    """Layers whose rows pay for tables of their own."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(128, 48), torch.nn.ReLU(), torch.nn.Linear(48, 64))
    return es.load(module.eval(), example_inputs={"input": torch.randn(3, 128)})


@pytest.mark.parametrize(("scheme", "bits", "sparsity"), sorted(FORMS))
def test_every_form_is_the_same_numbers(wide, tmp_path, scheme, bits, sparsity):
    options = {"table_rows": 16} if scheme == "table" else {"group_size": 0}
    small = small_model(wide, scheme, bits, sparsity, **options)
    artifact = es.export(small, path=tmp_path / "m.mlpackage")
    chain = " + ".join(FORMS[scheme, bits, sparsity])
    assert artifact.lowering["0.weight"].startswith(f"{chain}, ")
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)
    names = {planned.tensor.name for planned in small.plan.tensors}
    expected = sum(weight_nbytes(each, DEFAULT_CHOICE, names) for each in small.plan.tensors)
    (weights,) = artifact.path.rglob("weight.bin")
    # Exact but for records and alignment, of which a constant has less than 96 bytes more or less.
    assert abs(expected - weights.stat().st_size) <= 8 * 96


def with_scheme(packed, scheme, table_rows, rng):
    """Return a packed weight of the same codes and mask that mean other numbers."""
    codes = packed.codes
    rows = codes.shape[0]
    if scheme == "asymmetric":
        zeros = rng.integers(-8, 8, codes.scales.shape).astype(np.int8)
        changed = replace(codes, zeros=zeros)
    else:
        table = rng.standard_normal((table_count(rows, table_rows), 16)).astype(np.float16)
        changed = replace(
            codes, values=np.where(codes.keep_mask, codes.values + 8, 0).astype(np.int8),
            scales=np.zeros((rows, 0), np.float16), group_size=0, table=table,
            table_rows=table_rows,
        )  # fmt: skip
    return FORMATS.get(packed.spec.name).pack(changed, pattern=packed.spec.pattern)


@pytest.mark.parametrize(("scheme", "table_rows"), [("asymmetric", 0), ("table", 0), ("table", 3)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_every_kind_of_layer(layers, compressed, tmp_path, scheme, table_rows, sparsity):
    """Convolutions, tied embeddings; groups and tables that blocks cannot follow."""
    rng = np.random.default_rng(0)
    small = compressed(layers, bits=4, group_size=16, sparsity=sparsity)
    packed = {n: with_scheme(p, scheme, table_rows, rng) for n, p in small.packed.items()}
    small = replace(small, packed=packed)
    verdict = es.validate(es.export(small, path=tmp_path / "m.mlpackage"), small)
    assert verdict.ok, verdict


@pytest.mark.parametrize(
    ("scheme", "bits", "options"),
    [
        ("asymmetric", 3, {"system": "iOS26"}),
        ("table", 3, {"system": "iOS26"}),
        ("asymmetric", 4, {"tables": True}),
        ("asymmetric", 4, {"tables": True, "system": "iOS26"}),
    ],
)
def test_newer_systems_and_tables_of_codes_take_them_too(wide, tmp_path, scheme, bits, options):
    small = small_model(wide, scheme, bits, 0.0)
    artifact = es.export(small, path=tmp_path / "m.mlpackage", **options)
    assert "lut_to_dense" in artifact.lowering["0.weight"]
    assert es.validate(artifact, small).ok


@pytest.mark.parametrize(("scheme", "bits"), [("table", 2), ("table", 3), ("table", 4)])
def test_one_table_is_a_form_of_old_systems(wide, tmp_path, scheme, bits):
    small = small_model(wide, scheme, bits, 0.0)
    artifact = es.export(small, path=tmp_path / "m.mlpackage", system="iOS17")
    assert artifact.lowering["0.weight"].startswith("constexpr_lut_to_dense, uint")
    verdict = es.validate(artifact, small)
    assert verdict.ok, verdict
    assert all(layer.equal for layer in verdict.layers)


def test_another_zero_or_entry_is_a_difference(wide, tmp_path):
    for scheme in ("asymmetric", "table"):
        small = small_model(wide, scheme, 4, 0.5)
        package = Package(es.export(small, path=tmp_path / f"{scheme}.mlpackage").path)
        name = program_names(package, small.packed)["0.weight"]
        codes = small.packed["0.weight"].codes
        weight = read_weight(package, name)
        assert not compare(weight, codes).any
        field = "zeros" if scheme == "asymmetric" else "table"
        changed = getattr(codes, field).copy()
        changed[0, 0] += 1 if changed[0, 0] < 0 else -1
        assert compare(weight, Codes(**{**vars(codes), field: changed})).any


@pytest.mark.parametrize(("rows", "table_rows"), [(10, 0), (12, 4), (12, 8), (7, 2)])
def test_tables_are_repeated_where_blocks_do_not_divide_the_rows(rows, table_rows):
    rng = np.random.default_rng(0)
    codes = Codes(
        values=rng.integers(0, 4, (rows, 6)).astype(np.int8),
        scales=np.zeros((rows, 0), np.float16), keep_mask=np.ones((rows, 6), bool), bits=2,
        group_size=0, table_rows=table_rows,
        table=rng.standard_normal((table_count(rows, table_rows), 4)).astype(np.float16),
    )  # fmt: skip
    form = form_of(codes)
    assert rows % len(form.entries) == 0
    each = np.repeat(form.entries[:, 0], rows // len(form.entries), axis=0)
    found = np.take_along_axis(each, form.kept.astype(int), axis=1)
    assert np.array_equal(found, codes.decode())
