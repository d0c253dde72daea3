"""What could be done with one tensor: every candidate with its bytes and its predicted loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgesparse.budget import format_size
from edgesparse.model import TensorInfo, TensorKind
from edgesparse.packed import TABLE, scheme_bits
from edgesparse.pattern import Pattern
from edgesparse.planner.choose import PORTABLE, choose
from edgesparse.planner.rates import Sensitivity, alike
from edgesparse.planner.types import TensorPlan
from edgesparse.recipe import Rule

BITS = (16, 8, 4, 3, 2)
GROUP_SIZES = (32, 128)
# More than 75 % is left to those who ask for it: no one-shot solver keeps a model usable there.
SPARSITIES = (0.0, 0.25, 0.375, 0.5, 0.625, 0.75)
N_OF = (4, 64)
BLOCK = (16, 1)


def worthwhile(entries: Sequence[TensorPlan], sensitivity: Sensitivity) -> dict[int, float]:
    """Return index and predicted loss of the best entry of every size in every format.

    Args:
        entries: What can be done with one tensor.
        sensitivity: Rates by tensor name, as measured; {} takes all weights as alike.
    """
    best: dict[tuple[str, int], tuple[int, float]] = {}
    for index, entry in enumerate(entries):
        loss = expected_loss(entry, sensitivity)
        key = (entry.spec.name if entry.spec else "", entry.nbytes)
        if key not in best or loss < best[key][1]:
            best[key] = (index, loss)
    return dict(best.values())


def possible(
    tensor: TensorInfo,
    rule: Rule | None,
    formats: frozenset[str] = PORTABLE,
    *,
    by_row: bool = False,
) -> Iterator[TensorPlan]:
    """Yield what the rule allows, with its bytes and without a loss.

    Args:
        tensor: The tensor.
        rule: What is wanted of it; the fields it leaves open vary.
        formats: Names of the formats that may be used.
        by_row: Whether 8-bit codes may have one scale a row, too. That saves next to no bytes, but
            XNNPACK has kernels for 8 bits only so.
    """
    for variant in _variants(tensor, rule, by_row=by_row):
        yield plan_tensor(tensor, variant, formats)


def expected_loss(entry: TensorPlan, sensitivity: Sensitivity) -> float:
    """Return the predicted loss of one entry."""
    tensor = entry.tensor
    return sensitivity.get(tensor.name, alike(tensor.numel)).loss(entry.spec)


def plan_tensor(
    tensor: TensorInfo, rule: Rule | None, formats: frozenset[str] = PORTABLE
) -> TensorPlan:
    """Return what a rule comes to for one tensor: packed only where that is smaller."""
    as_it_is = TensorPlan(tensor=tensor, rule=None, spec=None, nbytes=tensor.nbytes)
    if rule is None:
        return replace(as_it_is, reason=tensor.reason or "no rule")
    if not tensor.compressible:
        return replace(as_it_is, reason=tensor.reason or "not a matrix")
    storage = choose(rule, tensor.shape, formats)
    if storage is None:
        return replace(as_it_is, reason="16 bits, nothing removed")
    if storage.nbytes >= tensor.nbytes:
        size = format_size(storage.nbytes)
        return replace(as_it_is, reason=f"packed would be larger: {size}")
    return TensorPlan(tensor=tensor, rule=rule, spec=storage.spec, nbytes=storage.nbytes)


def _variants(tensor: TensorInfo, rule: Rule | None, *, by_row: bool) -> Iterator[Rule | None]:
    """Yield the rule with every value its adjustable fields may take."""
    if rule is None or not tensor.compressible or not rule.adjustable:
        yield rule
        return
    bits = tuple(b for b in BITS if b in scheme_bits(rule.scheme))
    bits = bits if "bits" in rule.adjustable else (rule.bits,)
    grouped = "group_size" in rule.adjustable and rule.scheme != TABLE
    groups = GROUP_SIZES if grouped else (rule.group_size,)
    patterns = _patterns(tensor, rule)
    for b, group_size, pattern in itertools.product(bits, groups, patterns):
        yield replace(rule, bits=b, group_size=group_size, pattern=pattern)
    if by_row and grouped and 8 in bits:
        yield from (replace(rule, bits=8, group_size=0, pattern=pattern) for pattern in patterns)


def _patterns(tensor: TensorInfo, rule: Rule) -> list[Pattern]:
    """Return the patterns the planner may choose; a look-up table is never pruned on its own."""
    if tensor.kind == TensorKind.EMBEDDING:
        return [rule.pattern]
    free = "sparsity" in rule.adjustable
    if "pattern" in rule.adjustable:
        sparsities = SPARSITIES if free else (rule.pattern.sparsity,)
        return [pattern for sparsity in sparsities for pattern in _shapes(sparsity)]
    if not free:
        return [rule.pattern]
    return [rule.pattern.with_sparsity(sparsity) for sparsity in SPARSITIES]


def _shapes(sparsity: float) -> Iterator[Pattern]:
    """Yield every shape of mask that has a layout of its own and can have this sparsity."""
    yield Pattern(sparsity=sparsity)
    if not sparsity:
        return
    for of in N_OF:
        keep = (1 - sparsity) * of
        if keep == round(keep):
            yield Pattern(keep=round(keep), of=of)
    yield Pattern(sparsity=sparsity, block=BLOCK)
