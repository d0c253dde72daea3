"""Charts are pictures of numbers: areas, heights and pixels are checked against the numbers."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesparse.report.charts import (
    Point,
    Tile,
    bars,
    budget_bar,
    round_steps,
    scatter,
    squarify,
    treemap,
)
from edgesparse.report.picture import mask_png

SIZES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=40).map(lambda v: sorted(v)[::-1])


@given(SIZES)
def test_a_treemap_divides_the_box_by_the_values(values: list[float]) -> None:
    boxes = squarify(values, (0, 0, 300, 200))
    areas = np.array([w * h for _, _, w, h in boxes])
    np.testing.assert_allclose(
        areas, np.array(values) / sum(values) * 300 * 200, rtol=1e-6, atol=1e-6
    )
    for x, y, w, h in boxes:  # within a thousandth of a pixel
        assert -1e-3 <= x <= x + w <= 300 + 1e-3
        assert -1e-3 <= y <= y + h <= 200 + 1e-3


def test_the_papers_example() -> None:
    """Bruls et al., figure 6: 6, 6, 4, 3, 2, 2, 1 in a box of 6 by 4."""
    boxes = squarify([6, 6, 4, 3, 2, 2, 1], (0, 0, 6, 4))
    assert boxes[0] == pytest.approx((0, 0, 3, 2))
    assert boxes[1] == pytest.approx((0, 2, 3, 2))
    assert boxes[2] == pytest.approx((3, 0, 12 / 7, 7 / 3))
    assert boxes[3] == pytest.approx((3 + 12 / 7, 0, 9 / 7, 7 / 3))


@pytest.mark.parametrize(
    ("most", "steps"),
    [
        (1.0, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (9.06, [2, 4, 6, 8]),
        (0.571, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (120, [20, 40, 60, 80, 100, 120]),
        (2.5e-6, [0.5e-6, 1e-6, 1.5e-6, 2e-6, 2.5e-6]),
    ],
)
def test_ticks_are_round(most: float, steps: list[float]) -> None:
    assert round_steps(most) == pytest.approx(steps)


def test_every_chart_is_well_formed_and_escapes_names() -> None:
    evil = '<script>"&'
    charts = [
        budget_bar(3, 2, evil),
        scatter([Point(1, 2, evil), Point(0, 0, evil)], x_label=evil, y_label=evil),
        scatter([Point(0, 0, "zero")], x_label="x", y_label="y"),
        bars([1, 2], [evil, evil], title=evil, kind="bytes"),
        bars([], [], title="none", kind="bytes"),
        treemap([Tile(5, evil, evil, "linear"), Tile(0, "empty", "", "norm")], title=evil),
    ]
    for chart in charts:
        ElementTree.fromstring(str(chart))
        assert "<script" not in chart


def test_bars_are_as_tall_as_their_values() -> None:
    root = ElementTree.fromstring(str(bars([1, 4, 2], ["a", "b", "c"], title="", kind="k")))
    heights = [float(bar.attrib["height"]) for bar in root.iter("rect")]
    np.testing.assert_allclose(np.array(heights) / heights[1], [0.25, 1, 0.5])


@pytest.mark.parametrize("shape", [(1, 1), (3, 13), (16, 64), (600, 7)])
def test_a_mask_is_its_pixels(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    shown = mask[:512, :512]
    np.testing.assert_array_equal(_read_one_bit_png(mask_png(mask)), shown)


def _read_one_bit_png(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Read what ``mask_png`` may write: one bit, no filter, no interlace; dark is True."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert checksum == zlib.crc32(kind + data)
        chunks[kind], at = data, at + 12 + length
    width, height, bits, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, colour) == (1, 0)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return np.unpackbits(lines[:, 1:], axis=1)[:, :width] == 0
