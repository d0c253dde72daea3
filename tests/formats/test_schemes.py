"""Asymmetric codes and tables in every layout that stores them; what the others say."""

from __future__ import annotations

import numpy as np
import pytest
from edgesparse_kernels import reference

from edgesparse.errors import CorruptPack, FormatError
from edgesparse.formats.operand import open_matrix
from edgesparse.packed import FORMATS, Codes, PackedTensor, scheme_bits
from edgesparse.pattern import DENSE, Pattern

HALF = Pattern(sparsity=0.5)
STORED = [
    (name, scheme)
    for name in sorted(FORMATS)
    if name.startswith(("dense", "bitmask"))
    for scheme in ("asymmetric", "table")
    if FORMATS.get(name).bits in scheme_bits(scheme)
]
SHAPES = [(1, 1), (15, 127), (17, 129), (33, 5), (7,), (5, 3, 3, 3), (0, 4), (4, 0), (2, 65_600)]


def codes_for(make_codes, name, scheme, shape, **options):
    sparsity = 0.0 if name.startswith("dense") else 0.5
    bits = FORMATS.get(name).bits
    return make_codes(shape, bits=bits, scheme=scheme, **{"sparsity": sparsity, **options})


@pytest.mark.parametrize(("name", "scheme"), STORED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("table_rows", [0, 3])
def test_codes_come_back(make_codes, name, scheme, shape, table_rows):
    options = {"table_rows": table_rows} if scheme == "table" else {"group_size": 5}
    codes = codes_for(make_codes, name, scheme, shape, **options)
    layout = FORMATS.get(name)
    packed = layout.pack(codes, pattern=HALF)
    read = layout.unpack(packed)
    for field in ("values", "keep_mask", "scales", "zeros", "table"):
        assert np.array_equal(getattr(read, field), getattr(codes, field)), field
    assert (read.scheme, read.table_rows) == (scheme, codes.table_rows)
    assert np.array_equal(reference.decode(open_matrix(packed)).reshape(shape), codes.decode())
    # Sizes are known from the spec alone.
    sizes = layout.predict_nbytes(packed.spec, shape)
    assert list(sizes) == list(packed.buffers)
    assert all(
        packed.buffers[key].nbytes == sizes[key] for key in sizes if not key.startswith("codes")
    )
    assert layout.nbytes(packed.spec, codes.keep_mask) == packed.nbytes
    assert all(buffer.nbytes % 64 == 0 for buffer in packed.buffers.values())


def test_asymmetric_worked_by_hand():
    # Row 0, zero 2: (3 - 2) · 0.5, (-8 - 2) · 0.5; row 1, zero -8: (7 + 8) · 0.25, removed.
    codes = Codes(
        values=np.array([[3, -8], [7, 0]], np.int8),
        scales=np.array([[0.5], [0.25]], np.float16),
        keep_mask=np.array([[True, True], [True, False]]),
        bits=4,
        group_size=8,
        zeros=np.array([[2], [-8]], np.int8),
    )
    expected = np.array([[0.5, -5.0], [3.75, 0.0]], np.float32)
    assert np.array_equal(codes.decode(), expected)
    packed = FORMATS.get("bitmask4").pack(codes, pattern=HALF)
    assert packed.buffers["zeros"].tolist() == [2, -8] + [0] * 62
    assert packed.buffers["codes"][:3].tolist() == [0x03, 0x08, 0x07]
    # Without a mask the removed weight is the code whose value is 0.
    dense = FORMATS.get("dense4").pack(codes, pattern=HALF)
    assert dense.codes.values.tolist() == [[3, -8], [7, -8]]
    assert np.array_equal(dense.decode(), expected)


def test_table_worked_by_hand():
    # Rows 0 and 1 share the first table, row 2 has the second.
    table = np.array([[-1.5, 0.0, 0.25, 4.0], [8.0, 16.0, 32.0, 0.0]], np.float16)
    codes = Codes(
        values=np.array([[0, 3], [2, 0], [1, 2]], np.int8),
        scales=np.zeros((3, 0), np.float16),
        keep_mask=np.array([[True, True], [True, False], [True, True]]),
        bits=2,
        group_size=0,
        table=table,
        table_rows=2,
    )
    expected = np.array([[-1.5, 4.0], [0.25, 0.0], [16.0, 32.0]], np.float32)
    assert np.array_equal(codes.decode(), expected)
    packed = FORMATS.get("bitmask2").pack(codes, pattern=HALF)
    assert "scales" not in packed.buffers
    assert packed.buffers["table"].tolist() == [*table.reshape(-1).tolist(), *[0.0] * 24]
    dense = FORMATS.get("dense2").pack(codes, pattern=HALF)
    assert dense.codes.values[1].tolist() == [2, 1]
    assert np.array_equal(dense.decode(), expected)


def test_a_dense_table_without_a_zero_cannot_remove(make_codes):
    codes = make_codes((20, 40), bits=3, scheme="table")
    with pytest.raises(FormatError, match=r"no entry 0; use bitmask3"):
        FORMATS.get("dense3").pack(codes, pattern=HALF)


@pytest.mark.parametrize("name", ["nm4", "n64", "column16", "block16x8"])
@pytest.mark.parametrize("scheme", ["asymmetric", "table"])
def test_structured_layouts_refuse_by_name(make_codes, name, scheme):
    layout = FORMATS.get(name)
    with pytest.raises(FormatError, match=rf"{name} stores symmetric codes, not {scheme}"):
        layout.pack(make_codes((16, 64), bits=4, scheme=scheme), pattern=DENSE)
    with pytest.raises(FormatError, match="use bitmask4"):
        layout.spec(group_size=32, pattern=DENSE, scheme=scheme)
    packed = FORMATS.get("dense4").pack(
        make_codes((16, 64), bits=4, scheme=scheme, sparsity=0.0), pattern=DENSE
    )
    object.__setattr__(packed.spec, "name", name)
    with pytest.raises(FormatError, match="stores symmetric"):
        layout.check(packed)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bitmask16", {"group_size": 0, "scheme": "table"}, "16 bits, expected one of"),
        ("dense8", {"group_size": 0, "scheme": "table"}, "8 bits, expected one of"),
        ("bitmask16", {"group_size": 0, "scheme": "asymmetric"}, "16 bits"),
        ("dense4", {"group_size": 32, "scheme": "table"}, "group_size 32 with table"),
        ("dense4", {"group_size": 0, "scheme": "asymmetric"}, "group_size 0 with asymmetric"),
        ("dense4", {"group_size": 32, "scheme": "affine"}, "unknown scheme 'affine'; known"),
        ("dense4", {"group_size": 32, "table_rows": 16}, "table_rows 16 with symmetric"),
        ("dense4", {"group_size": 0, "scheme": "table", "table_rows": -1}, "table_rows -1"),
    ],
)
def test_contradictory_specs_are_refused(name, options, message):
    with pytest.raises(FormatError, match=message):
        FORMATS.get(name).spec(pattern=DENSE, **options)


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        ("asymmetric", {"zeros": np.full((4, 2), 8, np.int8)}, "zeros exceed 4 bits"),
        ("asymmetric", {"zeros": np.zeros((4, 3), np.int8)}, r"expected int8 \(4, 2\)"),
        ("asymmetric", {"zeros": np.zeros((4, 2), np.int16)}, "zeros are int16"),
        ("table", {"values": np.full((4, 40), -1, np.int8)}, r"expected 0\.\.15"),
        ("table", {"values": np.full((4, 40), 16, np.int8)}, r"expected 0\.\.15"),
        ("table", {"table": np.zeros((2, 16), np.float16)}, r"expected float16 \(1, 16\)"),
        ("table", {"table": np.full((1, 16), np.inf, np.float16)}, "must be finite"),
        ("table", {"zeros": np.zeros((4, 0), np.int8)}, "not both"),
        ("table", {"bits": 8}, "table codes of 8 bits"),
    ],
)
def test_invariants_are_checked_when_built(make_codes, scheme, changes, message):
    codes = make_codes((4, 40), bits=4, scheme=scheme, sparsity=0.0)
    with pytest.raises(FormatError, match=message):
        Codes(**{**vars(codes), **changes})


def poked(buffer, index, value):
    copy = buffer.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize(("name", "scheme"), STORED)
def test_damage_is_refused(make_codes, name, scheme):
    layout = FORMATS.get(name)
    packed = layout.pack(codes_for(make_codes, name, scheme, (40, 200)), pattern=HALF)
    key = "zeros" if scheme == "asymmetric" else "table"
    buffer = packed.buffers[key]
    limit = 1 << (layout.bits - 1)
    wrong = {"zeros": (-limit - 1, limit), "table": (np.nan, np.inf, -np.inf)}[key]
    damaged = [buffer[:-1], np.concatenate([buffer, buffer]), buffer.astype(np.int32)]
    if layout.bits < 8:
        damaged += [poked(buffer, 0, value) for value in wrong]
    # What belongs to no row: the last tile has 8 of its 16, and 2 or 4 or 8 entries leave room.
    if key == "zeros":
        damaged.append(poked(buffer, 2 * 7 * 16 + 8, 1))
    elif layout.bits < 4:
        damaged.append(poked(buffer, -1, 1))
    for changed in damaged:
        pack = PackedTensor(
            spec=packed.spec, shape=packed.shape, buffers={**packed.buffers, key: changed}
        )
        with pytest.raises(CorruptPack):
            layout.check(pack)
    missing = {k: v for k, v in packed.buffers.items() if k != key}
    with pytest.raises(CorruptPack, match=f"'{key}'"):
        layout.check(PackedTensor(spec=packed.spec, shape=packed.shape, buffers=missing))
