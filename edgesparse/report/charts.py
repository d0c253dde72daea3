"""Charts as SVG text: bars, a scatter, a treemap, a histogram. Colours are CSS classes of the page.

Each function takes numbers and returns markup; nothing here knows of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One point of a scatter: where, what it is, and whether it is the one to look at."""

    x: float
    y: float
    label: str
    strong: bool = False


@dataclass(frozen=True)
class Tile:
    """One rectangle of a treemap: its size, its name in full and in short, a CSS class."""

    value: float
    label: str
    short: str
    kind: str


def _svg(
    width: float, height: float, body: Sequence[str], title: str, *, stretch: bool = False
) -> Markup:
    fit = ' preserveAspectRatio="none"' if stretch else ""
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}"{fit} role="img" aria-label="{escape(title)}">'
        f"{''.join(body)}</svg>"
    )


def budget_bar(used: float, allowed: float, label: str) -> Markup:
    """Return how much of a limit is used: one bar, the limit a line, red beyond it."""
    whole = max(used, allowed)
    used_width, limit = 100 * used / whole, 100 * allowed / whole
    kind = "good" if used <= allowed else "bad"
    return _svg(
        100,
        5,
        [
            '<rect class="track" width="100" height="5" />',
            f'<rect class="{kind}" width="{used_width:.2f}" height="5" />',
            f'<rect class="limit" x="{max(limit - 0.4, 0):.2f}" width=".4" height="5"/>',
        ],
        label,
        stretch=True,
    )


def scatter(points: Sequence[Point], *, x_label: str, y_label: str) -> Markup:
    """Return points on linear axes that begin at zero, each with its label beside it."""
    width, height, left, bottom = 760.0, 260.0, 54.0, 40.0
    x_most = max((p.x for p in points), default=0) * 1.08 or 1
    y_most = max((p.y for p in points), default=0) * 1.2 or 1
    across, up = width - left - 20, height - bottom - 24
    body = [
        f'<path class="axis" d="M{left} 24V{height - bottom}H{width - 20}"/>',
        f'<text class="name" x="{width - 20}" y="{height - 6}" text-anchor="end">'
        f"{escape(x_label)}</text>",
        f'<text class="name" x="{left - 46}" y="14">{escape(y_label)}</text>',
    ]
    body += [
        _tick(left + value / x_most * across, height - bottom + 15, value, "middle")
        for value in round_steps(x_most)
    ]
    for value in round_steps(y_most):
        y = height - bottom - value / y_most * up
        body.append(f'<path class="grid" d="M{left} {y:.1f}H{width - 20}"/>')
        body.append(_tick(left - 6, y + 4, value, "end"))
    for point in points:
        x = left + point.x / x_most * across
        y = height - bottom - point.y / y_most * up
        side, shift = ("end", -10) if x > width * 0.6 else ("start", 10)
        body += [
            f'<circle class="{"strong" if point.strong else "dot"}" cx="{x:.1f}" cy="{y:.1f}" '
            'r="5"/>',
            f'<text x="{x + shift:.1f}" y="{y - 7:.1f}" text-anchor="{side}">'
            f"{escape(point.label)}</text>",
        ]
    return _svg(width, height, body, f"{y_label} against {x_label}")


def round_steps(most: float) -> list[float]:
    """Return three to six round values up to ``most``: multiples of 1, 2 or 5 by a power of ten."""
    power = 10.0 ** math.floor(math.log10(most))
    step = next(s * power for s in (0.2, 0.5, 1, 2) if most / (s * power) <= 6)
    return [step * i for i in range(1, int(most / step + 1e-9) + 1)]


def _tick(x: float, y: float, value: float, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{value:.4g}</text>'


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    title: str,
    kind: str,
    width: float = 1000.0,
    height: float = 120.0,
) -> Markup:
    """Return one thin bar for each value, in order; the label shows when pointed at."""
    most = max(values, default=0) or 1
    step = width / max(len(values), 1)
    body = [f'<path class="axis" d="M0 {height - 0.5}H{width}"/>']
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        tall = value / most * (height - 16)
        body.append(
            f'<rect class="{kind}" x="{i * step + step * 0.1:.2f}" y="{height - tall:.2f}" '
            f'width="{step * 0.8:.2f}" height="{tall:.2f}"><title>{escape(label)}</title></rect>'
        )
    return _svg(width, height, body, title)


def treemap(tiles: Sequence[Tile], *, title: str) -> Markup:
    """Return rectangles whose areas are the values, as square as can be, largest first."""
    width, height = 1000.0, 360.0
    ordered = sorted((t for t in tiles if t.value > 0), key=lambda t: -t.value)
    boxes = squarify([t.value for t in ordered], (0.0, 0.0, width, height))
    body = []
    for tile, (x, y, w, h) in zip(ordered, boxes, strict=True):
        body.append(
            f'<g><title>{escape(tile.label)}</title><rect class="tile {tile.kind}" x="{x:.1f}" '
            f'y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/>{_fitting(tile.short, x, y, w, h)}</g>'
        )
    return _svg(width, height, body, title)


def _fitting(label: str, x: float, y: float, w: float, h: float) -> str:
    """Return the label where it fits: flat, upright, or not at all."""
    needed = 6.4 * len(label) + 12
    if needed <= w and h >= 18:
        return f'<text class="on" x="{x + 6:.1f}" y="{y + 15:.1f}">{escape(label)}</text>'
    if needed <= h and w >= 18:
        return (
            f'<text class="on" transform="translate({x + 13:.1f} {y + 6:.1f}) rotate(90)">'
            f"{escape(label)}</text>"
        )
    return ""


def squarify(values: Sequence[float], box: Box) -> list[Box]:
    """Divide ``box`` (x, y, width, height) into areas proportional to ``values``, largest first.

    Bruls, Huizing and van Wijk (2000): a row takes values as long as its worst aspect ratio falls.
    """
    boxes: list[Box] = []
    rest, scale = list(values), 0.0
    x, y, w, h = box
    if rest:
        scale = w * h / sum(rest)
    while rest:
        side, count = min(w, h), 1
        while count < len(rest) and _worst(rest[: count + 1], side, scale) <= _worst(
            rest[:count], side, scale
        ):
            count += 1
        row, rest = rest[:count], rest[count:]
        thick = sum(row) * scale / side if side else 0.0
        at = 0.0
        for value in row:
            length = value * scale / thick if thick else 0.0
            boxes.append((x, y + at, thick, length) if w >= h else (x + at, y, length, thick))
            at += length
        x, y, w, h = (x + thick, y, w - thick, h) if w >= h else (x, y + thick, w, h - thick)
    return boxes


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """Return the worst aspect ratio of a row laid along ``side``."""
    thick = sum(row) * scale / side if side else 0.0
    if not thick:
        return float("inf")
    ratios = ((value * scale / thick) / thick for value in row)
    return max(max(ratio, 1 / ratio) if ratio else float("inf") for ratio in ratios)
