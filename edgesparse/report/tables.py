"""Tables for a terminal, from values; nothing here measures or decides anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from edgesparse.budget import format_duration, format_size
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.planner.types import Plan
from edgesparse.report.comparison import Comparison, Measured
from edgesparse.report.words import (
    NOTHING,
    architecture,
    error,
    millions,
    number,
    percent,
    rule_in_words,
)

if TYPE_CHECKING:
    from edgesparse.exporting import Artifact, LayerCheck, Verdict
    from edgesparse.runtime import Evaluation


def title(captured: CapturedModel) -> Text:
    """Return the line that names a model: ``classics-4m · Llama, 4.20 M parameters, 8.39 MB``."""
    text = Text(captured.name, style="bold")
    return text.append(
        f"  ·  {architecture(captured)}, {millions(captured.num_parameters)} parameters, "
        f"{format_size(captured.nbytes)}",
        style="not bold",
    )


def budget_line(plan: Plan) -> Text:
    """Return the line that says what was asked for."""
    text = Text(f"budget       {plan.budget}")
    return text.append(f"      target {plan.target}") if plan.target else text


def columns(*headers: str, left: int = 1) -> Table:
    """Return an empty table without lines: the first ``left`` columns flush left, others right."""
    table = Table(
        box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0),
        show_header=any(headers),
    )  # fmt: skip
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left else "right", no_wrap=i > 0)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Return dense, this plan and its equal-byte alternative, the better of the two marked."""
    table = columns("", *comparison_headers(comparison), "")
    better = comparison.better
    for measured in comparison.rows:
        mark = "← closer" if measured is better else ""
        table.add_row(
            measured.label,
            *comparison_cells(comparison, measured),
            Text(mark, style="green"),
        )
    return table


def comparison_headers(comparison: Comparison) -> tuple[str, ...]:
    """Return what each column of a comparison is."""
    if comparison.dense.evaluation.perplexity is None:
        return "bytes", "bits/weight", "output error", "cosine"
    return "bytes", "bits/weight", "perplexity", "× dense", "KL", "top-1"


def comparison_cells(comparison: Comparison, measured: Measured) -> list[str]:
    """Return one row of a comparison; the dense model has no distance to itself."""
    found, is_dense = measured.evaluation, measured is comparison.dense
    cells = [format_size(found.nbytes), number(found.bits_per_weight, 2)]
    if comparison.dense.evaluation.perplexity is None:
        errors = (found.output_error, found.cosine)
        return [*cells, *(NOTHING if is_dense else number(value, 4) for value in errors)]
    distances = (number(found.kl), percent(found.top1_agreement))
    return [
        *cells,
        number(found.perplexity, 2),
        number(found.ratio),
        *((NOTHING, NOTHING) if is_dense else distances),
    ]


def evaluation_table(evaluation: Evaluation) -> Table:
    """Return one model's measurements, a line each."""
    table = columns("", "")
    rows = [
        ("bytes", format_size(evaluation.nbytes)),
        ("bits per weight", number(evaluation.bits_per_weight, 2)),
        ("perplexity", number(evaluation.perplexity, 2)),
        ("dense perplexity", number(evaluation.dense_perplexity, 2)),
        ("× dense", number(evaluation.ratio)),
        ("KL to dense", number(evaluation.kl)),
        ("top-1 agreement", percent(evaluation.top1_agreement)),
        ("output error", number(evaluation.output_error, 5)),
        ("cosine", number(evaluation.cosine, 6)),
        ("windows", str(evaluation.windows)),
        ("predictions", f"{evaluation.tokens:,}" if evaluation.tokens else NOTHING),
    ]
    for name, value in rows:
        if value != NOTHING:
            table.add_row(name, value)
    return table


def plan_table(plan: Plan, *, limit: int | None = None) -> Table:
    """Return what happens to every tensor, largest first, and what is left out as one line."""
    table = columns("tensor", "shape", "", "format", "bytes", "share", left=4)
    entries = sorted(plan.tensors, key=lambda entry: -entry.nbytes)
    total = sum(entry.nbytes for entry in entries) or 1
    for entry in entries[:limit]:
        table.add_row(
            entry.tensor.name,
            "×".join(map(str, entry.tensor.shape)) or "scalar",
            rule_in_words(entry.rule) + (f" ({entry.reason})" if entry.reason else ""),
            entry.spec.name if entry.spec else entry.tensor.dtype,
            format_size(entry.nbytes),
            percent(entry.nbytes / total),
        )
    hidden = entries[limit:] if limit is not None else []
    if hidden:
        nbytes = sum(entry.nbytes for entry in hidden)
        table.add_row(
            Text(f"{len(hidden)} smaller ones; --all shows them", style="dim"), "", "", "",
            format_size(nbytes), percent(nbytes / total),
        )  # fmt: skip
    return table


def plan_totals(plan: Plan) -> Table:
    """Return what a plan costs and what it may, and its equal-byte alternative."""
    table = columns("", "predicted", "allowed")
    on_file = plan.target is None
    table.add_row(
        "weights at rest", format_size(plan.nbytes), _limit(plan.budget.file if on_file else None)
    )
    if plan.artifact_nbytes is not None:
        table.add_row(
            f"{plan.target} file", format_size(plan.artifact_nbytes), _limit(plan.budget.file)
        )
    if plan.download_nbytes is not None:
        download = format_size(plan.download_nbytes)
        table.add_row("weights as they are sent", download, _limit(plan.budget.download))
    if plan.latency_ns is not None and plan.budget.latency is not None:
        table.add_row(
            plan.latency_name, format_duration(plan.latency_ns),
            format_duration(plan.budget.latency),
        )  # fmt: skip
    if plan.peak_nbytes is not None or plan.budget.peak is not None:
        peak = NOTHING if plan.peak_nbytes is None else format_size(plan.peak_nbytes)
        table.add_row("peak memory", peak, _limit(plan.budget.peak))
        for term in plan.memory:
            table.add_row(f"  {term.name}: {term.basis}", format_size(term.nbytes), "")
    return table


def _limit(nbytes: int | None) -> str:
    return NOTHING if nbytes is None else format_size(nbytes)


def tensors_table(model: CapturedModel | CompressedModel, *, limit: int | None = None) -> Table:
    """Return every tensor of a model: what it is for, how it is stored, what that cost."""
    if isinstance(model, CapturedModel):
        return _captured_table(model, limit)
    table = columns(
        "tensor", "kind", "shape", "format", "sparsity", "group", "bytes", "error", left=4
    )
    rows = sorted(model.captured.tensors, key=lambda t: -_stored_nbytes(model, t.name))
    for tensor in rows[:limit]:
        packed = model.packed.get(tensor.name)
        table.add_row(
            tensor.name,
            tensor.kind.value,
            "×".join(map(str, tensor.shape)) or "scalar",
            packed.spec.title if packed else tensor.dtype,
            percent(packed.codes.sparsity) if packed else NOTHING,
            str(packed.spec.group_size or NOTHING) if packed else NOTHING,
            format_size(_stored_nbytes(model, tensor.name)),
            number(model.errors.get(tensor.name), 4),
        )
    return _with_rest(table, len(rows), limit)


def _stored_nbytes(model: CompressedModel, name: str) -> int:
    packed = model.packed.get(name)
    return packed.nbytes if packed else model.captured.by_name[name].nbytes


def _captured_table(model: CapturedModel, limit: int | None) -> Table:
    table = columns("tensor", "kind", "shape", "dtype", "bytes", "compressible", left=4)
    rows = sorted(model.tensors, key=lambda tensor: -tensor.nbytes)
    for tensor in rows[:limit]:
        tied = f" (tied: {', '.join(tensor.aliases)})" if tensor.aliases else ""
        table.add_row(
            tensor.name + tied,
            tensor.kind.value,
            "×".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            format_size(tensor.nbytes),
            "yes" if tensor.compressible else tensor.reason or "no",
        )
    return _with_rest(table, len(rows), limit)


def _with_rest(table: Table, count: int, limit: int | None) -> Table:
    if limit is not None and count > limit:
        table.add_row(Text(f"{count - limit} smaller ones; --all shows them", style="dim"))
    return table


def artifact_lines(artifact: Artifact) -> Iterable[Text]:
    """Return what was written, how the packed tensors were lowered, and the notes."""
    text = Text(f"{artifact.path}", style="bold")
    yield text.append(f"  {format_size(artifact.nbytes)}  for {artifact.target}", style="not bold")
    for how, names in _grouped(artifact.lowering).items():
        yield Text(f"  {len(names):>4} × {how}")
    for note in artifact.notes:
        yield Text(f"  {note}", style="dim")


def parity_line(artifact: Artifact, verdict: Verdict) -> Text:
    """Return one artifact in one line: bytes, equal tensors, the output nearest to its limit."""
    equal = sum(layer.equal for layer in verdict.layers)
    worst = max(verdict.outputs, key=lambda o: o.relative_error / o.tolerance, default=None)
    output = (
        f"output within {worst.relative_error:.1e} (allowed {worst.tolerance:.0e})"
        if worst
        else "no output"
    )
    text = Text(f"{artifact.path.name:<18}{format_size(artifact.nbytes):>9}   ")
    text.append(f"{equal} of {len(verdict.layers)} packed weights equal bit for bit, {output}   ")
    return text.append_text(_mark(verdict.ok))


def _grouped(lowering: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, how in lowering.items():
        groups.setdefault(how, []).append(name)
    return groups


def verdict_table(verdict: Verdict, *, limit: int | None = None) -> Table:
    """Return every packed tensor and every output: equal, or the error and what is allowed.

    With ``limit``, tensors that are equal are counted once there are more than that.
    """
    table = columns("", "held as", "error", "allowed", "", left=2)
    layers: Sequence[LayerCheck] = verdict.layers
    if limit is not None and len(layers) > limit:
        equal = {layer.name: layer.lowering for layer in layers if layer.equal}
        layers = [layer for layer in layers if not layer.equal]
        for how, names in _grouped(equal).items():
            table.add_row(f"{len(names)} packed tensors", how, "equal", "equal", _mark(True))
    for layer in layers:
        found, allowed = error(layer.max_abs_error), error(layer.tolerance)
        table.add_row(layer.name, layer.lowering, found, allowed, _mark(layer.ok))
    for output in verdict.outputs:
        found, allowed = error(output.relative_error), error(output.tolerance)
        table.add_row(f"output {output.name}", "relative error", found, allowed, _mark(output.ok))
    return table


def _mark(ok: bool) -> Text:
    return Text("ok", style="green") if ok else Text("WRONG", style="bold red")
