"""Two records of the same cases: what changed, and what of it got worse than is tolerated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgesparse.budget import format_size
from edgesparse_device.record import CaseResult, Record, Status


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much worse the second record may be.

    Attributes:
        error: Growth of a relative error, absolute.
        tokens: Loss of token agreement, a fraction of the positions.
        latency: Growth of the median time, relative; only looked at on the same real device.
        memory: Growth of the peak memory, relative; only looked at on the same real device.
        size: Growth of the file, relative.
        same_tokens: Whether both must give the very same tokens.
    """

    error: float = 1e-3
    tokens: float = 0.0
    latency: float = 0.2
    memory: float = 0.1
    size: float = 0.01
    same_tokens: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that is not the same in both records.

    Attributes:
        case: The case, or "" for the run as a whole.
        what: What changed.
        before: As people read it.
        after: As people read it.
        worse: Whether it is outside the tolerance.
    """

    case: str
    what: str
    before: str
    after: str
    worse: bool


def compare(before: Record, after: Record, tolerance: Tolerance | None = None) -> list[Change]:
    """Return what changed from ``before`` to ``after``, in the order of the cases."""
    limits = tolerance or Tolerance()
    changes = list(_of_run(before, after, limits))
    later = {case.name: case for case in after.cases}
    for case in before.cases:
        if case.name in later:
            changes += _of_case(case, later[case.name], limits, _comparable_times(before, after))
        else:
            changes.append(_change(case.name, "result", str(case.status), "missing", worse=True))
    return changes


def _of_run(before: Record, after: Record, limits: Tolerance) -> Iterator[Change]:
    if before.artifact_sha256 != after.artifact_sha256:
        sizes = before.file_nbytes, after.file_nbytes
        yield _change(
            "", "file", *map(format_size, sizes), worse=sizes[1] > sizes[0] * (1 + limits.size)
        )
    peaks = before.peak_nbytes, after.peak_nbytes
    if _comparable_times(before, after) and peaks[0] and peaks[1] and peaks[0] != peaks[1]:
        worse = peaks[1] > peaks[0] * (1 + limits.memory)
        yield _change("", "peak memory", format_size(peaks[0]), format_size(peaks[1]), worse=worse)
    if after.error:
        yield _change("", "run", before.error or "whole", after.error, worse=True)


def _of_case(
    before: CaseResult, after: CaseResult, limits: Tolerance, times: bool
) -> Iterator[Change]:
    name = before.name
    if before.status is not after.status:
        worse = after.status is Status.FAILED or before.status is Status.OK
        yield _change(name, "result", str(before.status), str(after.status), worse=worse)
    if not before.outputs or not after.outputs:
        return
    if before.relative != after.relative:
        worse = not after.relative <= before.relative + limits.error
        pair = f"{before.relative:.2e}", f"{after.relative:.2e}"
        yield _change(name, "relative error", *pair, worse=worse)
    if before.token_agreement is not None and after.token_agreement is not None:
        fell = before.token_agreement - after.token_agreement
        if fell:
            pair = f"{before.token_agreement:.2%}", f"{after.token_agreement:.2%}"
            yield _change(name, "token agreement", *pair, worse=fell > limits.tokens)
    if before.tokens != after.tokens:
        differ = different_tokens(before, after)
        pair = f"{len(before.tokens)} tokens", f"{differ} of them differ"
        yield _change(name, "tokens", *pair, worse=limits.same_tokens)
    if times and before.latency and after.latency and before.latency != after.latency:
        medians = before.latency.p50, after.latency.p50
        worse = medians[1] > medians[0] * (1 + limits.latency)
        yield _change(name, "median time", *(f"{ms:.3g} ms" for ms in medians), worse=worse)


def different_tokens(a: CaseResult, b: CaseResult) -> int:
    """Return at how many positions two results have different tokens; a missing one differs."""
    shared = sum(x != y for x, y in zip(a.tokens, b.tokens, strict=False))
    return shared + abs(len(a.tokens) - len(b.tokens))


def agreement(records: list[Record]) -> Iterator[str]:
    """Yield one line for every record that can be held against the first, case by case."""
    if not records:
        return
    first, *others = records
    for other in others:
        pairs = _pairs(first, other)
        if not pairs:
            continue
        equal = sum(a.output_sha256 == b.output_sha256 for a, b in pairs)
        words = f"{equal} of {len(pairs)} cases equal bit for bit"
        if all(a.tokens for a, _ in pairs):
            count = sum(len(a.tokens) for a, _ in pairs)
            differ = sum(different_tokens(a, b) for a, b in pairs)
            words += f", {count - differ} of {count} tokens the same"
        yield f"{first.device.name} and {other.device.name}: {words}"


def _pairs(first: Record, other: Record) -> list[tuple[CaseResult, CaseResult]]:
    """Return the cases both have outputs of, of the same artifact."""
    if first.artifact_sha256 != other.artifact_sha256:
        return []
    later = {case.name: case for case in other.cases if case.output_sha256}
    return [(c, later[c.name]) for c in first.cases if c.output_sha256 and c.name in later]


def _comparable_times(before: Record, after: Record) -> bool:
    """Whether times and memory of the two say anything about each other."""
    a, b = before.device, after.device
    return not a.emulated and not b.emulated and (a.name, a.cpu) == (b.name, b.cpu)


def _change(case: str, what: str, before: str, after: str, *, worse: bool) -> Change:
    return Change(case=case, what=what, before=before, after=after, worse=worse)
