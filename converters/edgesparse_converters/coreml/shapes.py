"""Enumerated shapes: the few sizes an input may have, rather than one, or any.

Written ``image=1x3x64x64,1x3x96x96``, several inputs separated by ``;``, shape by shape together:
``input_ids=1x32,1x64;attention_mask=1x32,1x64``. Core ML prepares each of them when it loads the
model, so that the Neural Engine can be used, which it is not for sizes that are open.

Ranges: sizes that are open between two bounds, each with a name, ``image=1x3xH:32..256xW:32..256``.
Where a name stands twice, the sizes are equal: ``input_ids=1xT:2..64;attention_mask=1xT:2..64``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgesparse.errors import UsageError

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]
"""The shapes of every enumerated input, largest first."""

_INPUT = re.compile(r"(\w+)=(\d+(?:x\d+)*(?:,\d+(?:x\d+)*)+)", re.ASCII)
MAX_SHAPES = 128
_RANGES = re.compile(r"(\w+)=(\d+|\w+:\d+\.\.\d+)(?:x(?:\d+|\w+:\d+\.\.\d+))*", re.ASCII)

Ranges = Mapping[str, tuple[tuple[str, int, int], ...]]
"""Name, least and largest size of every axis of an input; of a fixed one the name is empty."""


def parse_shapes(text: str) -> Shapes:
    """Read shapes as a user types them.

    Example:
        >>> parse_shapes("x=1x32,1x64")
        {'x': ((1, 64), (1, 32))}

    Raises:
        UsageError: Anything that cannot be meant.
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for part in text.split(";"):
        match = _INPUT.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"shapes {part!r}: expected NAME=1x32,1x64, at least two shapes of an input"
            )
        found[match[1]] = [tuple(map(int, shape.split("x"))) for shape in match[2].split(",")]
    counts = {len(shapes) for shapes in found.values()}
    if len(counts) > 1 or max(counts) > MAX_SHAPES:
        raise UsageError(
            f"shapes {text!r}: every input needs as many, at most {MAX_SHAPES}: the first of one "
            "goes with the first of the others"
        )
    for name, shapes in found.items():
        if len({len(shape) for shape in shapes}) > 1:
            raise UsageError(f"shapes of {name!r} have different numbers of dimensions")
    first = next(iter(found.values()))
    order = sorted(range(len(first)), key=lambda index: -math.prod(first[index]))
    return {name: tuple(shapes[index] for index in order) for name, shapes in found.items()}


def resize(inputs: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Return example inputs of the largest shapes, their numbers repeated.

    Raises:
        UsageError: A shape of an input that does not exist, or of other rank than its example.
    """
    for name, allowed in shapes.items():
        if name not in inputs or inputs[name].dim() != len(allowed[0]):
            known = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
            raise UsageError(f"shapes of {name!r}: the model takes {known}")
    return {
        name: torch.from_numpy(np.resize(value.numpy(), shapes[name][0])) if name in shapes
        else value
        for name, value in inputs.items()
    }  # fmt: skip


def open_axes(inputs: Mapping[str, Tensor], shapes: Shapes) -> dict[str, dict[int, Any] | None]:
    """Return the axes that vary as ``torch.export`` takes them.

    Axes with the same sizes, shape by shape, are one dimension.

    Raises:
        UsageError: An axis that is 1 in some shapes only, which torch cannot trace.
    """
    dims: dict[tuple[int, ...], Any] = {}
    axes: dict[str, dict[int, Any] | None] = dict.fromkeys(inputs)
    for name, allowed in shapes.items():
        own = axes[name] = {}
        for axis, sizes in enumerate(zip(*allowed, strict=True)):
            if len(set(sizes)) == 1:
                continue
            if min(sizes) < 2:
                raise UsageError(f"shapes of {name!r}: an axis of sizes {sizes} must be 2 or more")
            if sizes not in dims:
                dims[sizes] = torch.export.Dim(f"size_{len(dims)}", min=min(sizes), max=max(sizes))
            own[axis] = dims[sizes]
    return axes


def parse_ranges(text: str) -> Ranges:
    """Read ranges as a user types them.

    Example:
        >>> parse_ranges("x=1xT:2..64")
        {'x': (('', 1, 1), ('T', 2, 64))}

    Raises:
        UsageError: Anything that cannot be meant.
    """
    found: dict[str, tuple[tuple[str, int, int], ...]] = {}
    bounds: dict[str, tuple[int, int]] = {}
    for part in text.split(";"):
        if _RANGES.fullmatch(part.strip()) is None:
            raise UsageError(f"ranges {part!r}: expected NAME=1xT:2..64, fixed sizes and ranges")
        name, _, sizes = part.strip().partition("=")
        found[name] = tuple(map(_axis, re.split(r"x(?=\d|\w+:)", sizes)))
        for axis, low, high in found[name]:
            if axis and (
                not 2 <= low < high or bounds.setdefault(axis, (low, high)) != (low, high)
            ):
                raise UsageError(
                    f"ranges {axis}:{low}..{high}: expected the same bounds wherever the name "
                    "stands, the lower at least 2 and below the upper"
                )
    return found


def _axis(text: str) -> tuple[str, int, int]:
    name, _, sizes = text.rpartition(":")
    low, _, high = sizes.partition("..")
    return name, int(low), int(high or low)


def largest(ranges: Ranges) -> Shapes:
    """Return the largest shape of every input."""
    return {name: (tuple(high for _, _, high in axes),) for name, axes in ranges.items()}


def open_ranges(inputs: Mapping[str, Tensor], ranges: Ranges) -> dict[str, dict[int, Any] | None]:
    """Return the open axes as ``torch.export`` takes them; those of one name are one dimension."""
    dims: dict[str, Any] = {}
    axes: dict[str, dict[int, Any] | None] = dict.fromkeys(inputs)
    for name, sizes in ranges.items():
        own = axes[name] = {}
        for axis, (label, low, high) in enumerate(sizes):
            if label:
                dims.setdefault(label, torch.export.Dim(label, min=low, max=high))
                own[axis] = dims[label]
    return axes
