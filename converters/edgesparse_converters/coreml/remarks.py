"""What an export refuses by name, and what it tells about the weights that it wrote."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgesparse.errors import ExportError, Unsupported
from edgesparse.packed import PackedTensor
from edgesparse_converters.coreml import translate
from edgesparse_converters.coreml.blocks import block_shape
from edgesparse_converters.coreml.forming import has_old_form
from edgesparse_converters.coreml.options import OLD_SYSTEMS, Options

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel


def refuse_old_system(compressed: CompressedModel, options: Options) -> None:
    """Refuse, by name, weights an old system has no constant for, unless they may be values."""
    if options.system not in OLD_SYSTEMS:
        return
    without = {
        name: packed
        for name, packed in compressed.packed.items()
        if not has_old_form(packed.spec, packed.shape)
    }
    if not options.allow_conversion:
        _refuse(
            without,
            f"{options.system} has no form for",
            "without a mask it holds a scale for a row or a table for a weight, with one only "
            "float16 values; export for iOS18, or allow the conversion to float16 values with "
            "--allow-conversion, in Python allow_conversion=True",
        )
    else:
        _refuse(
            {name: packed for name, packed in without.items() if not _fits_float16(packed)},
            f"{options.system} would hold float16 values of",
            "which are not exact, products of 8-bit codes and scales: use fewer bits, a scale for "
            "each row without a mask, or iOS18",
        )


def _refuse(packed: Mapping[str, PackedTensor], what: str, why: str) -> None:
    """Refuse weights by name, if there are any."""
    names = [f"{name} ({each.spec.name})" for name, each in packed.items()]
    if names:
        rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise Unsupported(f"{what} {', '.join(names[:5])}{rest}: {why}")


def _fits_float16(packed: PackedTensor) -> bool:
    values = packed.codes.decode()
    return np.array_equal(values, values.astype(np.float16))


def refuse_lost(compressed: CompressedModel, storage: translate.Storage) -> None:
    """Refuse a program that does not use every packed weight through its operator."""
    lost = sorted(set(compressed.packed) - set(storage.written))
    if lost:
        raise ExportError(
            f"the traced program never reads {', '.join(lost[:5])}; such weights would be left "
            "out of the package: leave them out of the recipe or use them in forward"
        )


def notes(compressed: CompressedModel, storage: translate.Storage) -> tuple[str, ...]:
    """Return what a person should know of how weights were written."""
    said = []
    widened: Counter[tuple[int, int]] = Counter()
    for name, form in storage.written.items():
        spec = compressed.packed[name].spec
        if form.bits != spec.bits and form.bits < 16:
            widened[spec.bits, form.bits] += 1
        if form.scales is None:
            continue
        stored, chosen = form.scales[0].size, spec.groups(math.prod(form.shape[1:]))
        if stored > chosen:
            block = "x".join(map(str, block_shape(form.shape, spec.group_size)[1:]))
            said.append(
                f"{name}: groups of {spec.group_size} do not fall on blocks of shape {form.shape}; "
                f"scales are repeated for blocks of {block}, {stored} a row instead of {chosen}"
            )
    values = [
        form.mask is not None
        for name, form in storage.written.items()
        if form.bits == 16 and compressed.packed[name].spec.bits < 16
    ]
    if values.count(False):
        said.append(
            f"{values.count(False)} weights are written as float16 values in full: as large as "
            "dense"
        )
    if values.count(True):
        said.append(f"{values.count(True)} weights are written as a mask and float16 values")
    why = (
        "the system has none so narrow"
        if storage.choice.old
        else ("tables would cost more than the narrower codes save")
    )
    said += [
        f"{count} weights of {bits} bits are written as {stored}-bit integers of the same values: "
        f"{why}"
        for (bits, stored), count in sorted(widened.items())
    ]
    return tuple(said)
