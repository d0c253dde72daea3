from __future__ import annotations

import pytest

from edgesparse.errors import FormatError
from edgesparse.formats.choice import candidates, choose
from edgesparse.packed import FORMATS
from edgesparse.pattern import Pattern


@pytest.mark.parametrize(
    ("text", "sparsity", "bits", "expected"),
    [
        ("unstructured", 0.0, 4, "dense4"), ("unstructured", 0.2, 4, "dense4"),
        ("unstructured", 0.3, 4, "bitmask4"), ("unstructured", 0.95, 4, "bitmask4"),
        ("unstructured", 0.3, 3, "dense3"), ("unstructured", 0.3, 8, "bitmask8"),
        ("unstructured", 0.5, 16, "bitmask16"), ("2:4", 0.5, 4, "nm4"), ("2:4", 0.5, 8, "bitmask8"),
        ("2:8", 0.75, 4, "bitmask4"), ("16:64", 0.75, 4, "n64"), ("16x1", 0.5, 4, "column16"),
        ("16x8", 0.5, 4, "block16x8"), ("4x4", 0.5, 4, "bitmask4"),
    ],
)  # fmt: skip
def test_rule(text, sparsity, bits, expected):
    assert choose(Pattern.parse(text, sparsity=sparsity), bits=bits).name == expected


def test_below_one_bit_in_bits_dense_is_the_smaller_one():
    """The threshold 1 / bits is where a mask's bit pays for itself."""
    for bits in (2, 3, 4, 8):
        for sparsity, name in (
            (1 / bits - 0.06, f"dense{bits}"),
            (1 / bits + 0.06, f"bitmask{bits}"),
        ):
            pattern = Pattern(sparsity=sparsity)
            sizes = {}
            for each in candidates(pattern, bits=bits):
                spec = FORMATS.get(each).spec(group_size=128, pattern=pattern)
                sizes[each] = sum(FORMATS.get(each).predict_nbytes(spec, (1024, 4096)).values())
            assert min(sizes, key=sizes.__getitem__) == name == choose(pattern, bits=bits).name


def test_measured_speeds_outweigh_the_rule():
    pattern = Pattern.parse("16x1", sparsity=0.5)
    choice = choose(pattern, bits=4, speeds={"column16": 90.0, "dense4": 40.0, "nm4": 1.0})
    assert (choice.name, choice.reason) == ("dense4", "fastest measured, 40 µs")


def test_a_phone_is_told_that_a_bitmask_is_not_faster():
    assert "not faster" in choose(Pattern(sparsity=0.5), bits=4, device="phone").reason


def test_bits_no_layout_has():
    with pytest.raises(FormatError, match="5 bits"):
        choose(Pattern(), bits=5)
