"""The report: one self-contained HTML page about a compressed model, no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesparse.budget import format_size
from edgesparse.errors import MissingDependency
from edgesparse.model import CompressedModel
from edgesparse.packed import PackedTensor
from edgesparse.report.comparison import Comparison, hints
from edgesparse.report.records import DeviceRun
from edgesparse.report.tables import comparison_cells, comparison_headers
from edgesparse.report.words import NOTHING, architecture, millions, number, percent, plan_in_words

if TYPE_CHECKING:
    from edgesparse.exporting import Verdict

TEMPLATE = Path(__file__).with_name("page.html")


def report_page(
    compressed: CompressedModel,
    verdicts: Sequence[Verdict] = (),
    runs: Sequence[DeviceRun] = (),
) -> str:
    """Return the page as HTML.

    Args:
        compressed: The model; the comparison that ``compress`` made travels in its metadata.
        verdicts: What validating its artifacts showed, if they are to be in the report.
        runs: What running them on devices showed, likewise.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise MissingDependency("jinja2", "report", "a report") from None

    template = Environment(autoescape=True, trim_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    captured = compressed.captured
    budgets, kept = _budgets(compressed, verdicts)
    proven = all(verdict.ok for verdict in verdicts) and all(run.ok for run in runs)
    return template.render(
        name=captured.name,
        architecture=architecture(captured),
        parameters=millions(captured.num_parameters),
        plan=plan_in_words(compressed.plan),
        budgets=budgets,
        kept=kept and proven,
        verdict=_verdict(compressed, kept=kept, verdicts=verdicts, runs=runs),
        comparison=_comparison(compressed),
        treemap=_treemap(compressed),
        charts=_charts(compressed),
        picture=_picture(compressed),
        artifacts=[_artifact(verdict) for verdict in verdicts],
        runs=runs,
        tensors=_tensors(compressed),
        command=compressed.metadata.get("command", ""),
        tools=", ".join(f"{k} {v}" for k, v in compressed.metadata.get("tools", {}).items()),
    )


def _budgets(
    compressed: CompressedModel, verdicts: Sequence[Verdict]
) -> tuple[list[dict[str, Any]], bool]:
    """Return a bar for each limit that something is known about, and whether all are kept."""
    from edgesparse.exporting import nbytes_on_disk
    from edgesparse.report.charts import budget_bar

    plan = compressed.plan
    sizes = {v.path.name: nbytes_on_disk(v.path) for v in verdicts if v.target == plan.target}
    if plan.target is None:
        sizes = {"weights": compressed.nbytes}
    rows = [(name, nbytes, plan.budget.file) for name, nbytes in sizes.items()]
    rows.append(("peak memory", plan.peak_nbytes or 0, plan.budget.peak))
    bars = [
        {
            "name": name,
            "svg": budget_bar(used, limit, f"{name}: {format_size(used)}"),
            "text": f"{format_size(used)} of {format_size(limit)}",
            "kept": used <= limit,
        }
        for name, used, limit in rows
        if limit is not None and used
    ]
    return bars, all(bar["kept"] for bar in bars)


def _verdict(
    compressed: CompressedModel,
    *,
    kept: bool,
    verdicts: Sequence[Verdict],
    runs: Sequence[DeviceRun],
) -> str:
    saved = compressed.captured.nbytes / compressed.nbytes
    parts = [
        f"{format_size(compressed.nbytes)}, {compressed.bits_per_weight:.2f} bits per weight, "
        f"{saved:.1f} times smaller"
    ]
    if not compressed.plan.budget.is_unlimited:
        parts.append("within the budget" if kept else "OVER THE BUDGET")
    if verdicts:
        good = sum(verdict.ok for verdict in verdicts)
        parts.append(f"{good} of {len(verdicts)} files proven")
    if runs:
        parts.append(f"{sum(run.ok for run in runs)} of {len(runs)} device runs right")
    return " · ".join(parts)


def _comparison(compressed: CompressedModel) -> dict[str, Any] | None:
    """Return the table and the front of what ``compress`` measured; None if it did not."""
    from edgesparse.report.charts import Point, scatter

    if "evaluation" not in compressed.metadata:
        return None
    comparison = Comparison.from_json(compressed.metadata["evaluation"])
    points = [
        Point(
            m.evaluation.nbytes / 1e6,
            m.distance or 0.0,
            m.label,
            strong=m is (comparison.better or comparison.compressed),
        )
        for m in comparison.rows
    ]
    is_text = comparison.dense.evaluation.perplexity is not None
    return {
        "headers": comparison_headers(comparison),
        "rows": [
            {
                "label": m.label,
                "cells": comparison_cells(comparison, m),
                "better": m is comparison.better,
            }
            for m in comparison.rows
        ],
        "measured_on": comparison.measured_on,
        "hints": hints(comparison),
        "front": scatter(
            points, x_label="MB", y_label="KL to the dense model" if is_text else "output error"
        ),
    }


def _stored_nbytes(compressed: CompressedModel, name: str) -> int:
    packed = compressed.packed.get(name)
    return packed.nbytes if packed else compressed.captured.by_name[name].nbytes


def _treemap(compressed: CompressedModel) -> str:
    from edgesparse.report.charts import Tile, treemap

    tiles = []
    for tensor in compressed.captured.tensors:
        nbytes = _stored_nbytes(compressed, tensor.name)
        short = ".".join(tensor.name.removesuffix(".weight").split(".")[-3:])
        label = f"{tensor.name}: {format_size(nbytes)}"
        tiles.append(Tile(nbytes, label, short, tensor.kind.value))
    return treemap(tiles, title="Bytes of every tensor")


def _charts(compressed: CompressedModel) -> list[dict[str, Any]]:
    """Return bytes, bits, sparsity and error of the packed tensors, in the model's order."""
    from edgesparse.report.charts import bars

    names = list(compressed.packed)
    packed = [compressed.packed[name] for name in names]
    series: list[tuple[str, str, list[float], str]] = [
        ("bytes", "bytes", [float(p.nbytes) for p in packed], "{:,.0f}"),
        ("stored bits per weight", "bits", [_bits_per_weight(p) for p in packed], "{:.2f}"),
        ("sparsity", "sparsity", [p.codes.sparsity for p in packed], "{:.1%}"),
        ("error", "error", [compressed.errors.get(n, 0.0) for n in names], "{:.4f}"),
    ]
    return [
        {
            "title": f"{title}, at most {form.format(max(values, default=0))}",
            "svg": bars(
                values,
                [f"{n}: {form.format(v)}" for n, v in zip(names, values, strict=True)],
                title=title,
                kind=kind,
            ),
        }
        for title, kind, values, form in series
    ]


def _bits_per_weight(packed: PackedTensor) -> float:
    return 8 * packed.nbytes / max(int(np.prod(packed.shape)), 1)


def _picture(compressed: CompressedModel) -> dict[str, Any] | None:
    """Return mask and codes of the tensor with the largest error among those with a mask."""
    from edgesparse.report.charts import bars
    from edgesparse.report.picture import MOST_PIXELS, data_uri, mask_png

    packed = compressed.packed.items()
    sparse = [n for n, p in packed if not p.spec.pattern.is_dense and p.codes.keep_mask.any()]
    if not sparse:
        return None
    name = max(sparse, key=lambda n: compressed.errors.get(n, 0.0))
    codes = compressed.packed[name].codes
    rows = codes.keep_mask.shape[0]
    mask = codes.keep_mask.reshape(rows, -1)
    kept = codes.values[codes.keep_mask].astype(np.float64)
    counts, edges = np.histogram(kept, bins=_bins(codes.bits, kept))
    labels = [f"{edge:.4g}: {count:,}" for edge, count in zip(edges, counts, strict=False)]
    shown = f"{min(rows, MOST_PIXELS)} rows and {min(mask.shape[1], MOST_PIXELS)} columns"
    return {
        "name": name,
        "why": f"The tensor with the largest error: {compressed.errors.get(name, 0):.4f}, "
        f"{percent(codes.sparsity)} removed.",
        "mask": data_uri(mask_png(mask)),
        "shown": shown,
        "histogram": bars(
            [float(c) for c in counts], labels, title="codes", kind="bytes", width=400, height=180
        ),
        "histogram_of": f"kept codes from {kept.min():.4g} to {kept.max():.4g}",
    }


def _bins(bits: int, values: Any) -> Any:
    """Return one bin for each code, or 64 over the values when there are no codes."""
    if bits == 16 or not len(values):
        return 64
    return np.arange(values.min(), values.max() + 2)


def _artifact(verdict: Verdict) -> dict[str, Any]:
    from edgesparse.exporting import nbytes_on_disk

    equal = sum(layer.equal for layer in verdict.layers)
    return {
        "name": verdict.path.name,
        "nbytes": format_size(nbytes_on_disk(verdict.path)),
        "layers": f"{equal} of {len(verdict.layers)} equal bit for bit",
        "outputs": "; ".join(
            f"{o.name} within {o.relative_error:.1e} (allowed {o.tolerance:.0e})"
            for o in verdict.outputs
        ),
        "ok": verdict.ok,
    }


def _tensors(compressed: CompressedModel) -> list[dict[str, str]]:
    rows = []
    for tensor in compressed.captured.tensors:
        packed = compressed.packed.get(tensor.name)
        rows.append(
            {
                "name": tensor.name,
                "kind": tensor.kind.value,
                "shape": "×".join(map(str, tensor.shape)),
                "stored": packed.spec.title if packed else tensor.dtype,
                "sparsity": percent(packed.codes.sparsity) if packed else NOTHING,
                "group": str(packed.spec.group_size or NOTHING) if packed else NOTHING,
                "nbytes": format_size(_stored_nbytes(compressed, tensor.name)),
                "error": number(compressed.errors.get(tensor.name), 4),
            }
        )
    return rows


def write_page(path: Path, page: str) -> None:
    """Write the page under a temporary name, then put it in place."""
    temporary = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
