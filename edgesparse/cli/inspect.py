"""``edgesparse inspect``: what is in a model, a compressed model, or an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgesparse.cli._console import show, show_json
from edgesparse.cli._models import is_artifact, open_model
from edgesparse.cli._options import common, source_option

if TYPE_CHECKING:
    from edgesparse.model import CapturedModel, CompressedModel

SHOWN = 40


@click.command(short_help="What is in a model, a compressed model or an artifact.")
@click.argument("path")
@source_option
@click.option("--all", "show_all", is_flag=True, help="Show every tensor, however many.")
@common
def inspect(path: str, source: str | None, show_all: bool, as_json: bool) -> None:
    """Show what is in PATH: a model, a compressed model, or an artifact (.pte, .mlpackage)."""
    from edgesparse.exporting import inspect as inspect_artifact

    if is_artifact(path):
        _show_artifact(
            path, inspect_artifact(path), limit=None if show_all else SHOWN, as_json=as_json
        )
        return
    model = open_model(path, source)
    if as_json:
        show_json(_to_json(model))
    else:
        _show_model(model, limit=None if show_all else SHOWN)


def _show_model(model: CapturedModel | CompressedModel, *, limit: int | None) -> None:
    from edgesparse.model import CapturedModel
    from edgesparse.report import tables
    from edgesparse.report.comparison import Comparison
    from edgesparse.report.words import plan_in_words

    captured = model if isinstance(model, CapturedModel) else model.captured
    show(tables.title(captured))
    if not isinstance(model, CapturedModel):
        from edgesparse.budget import format_size

        show(
            f"compressed   {plan_in_words(model.plan)}, {format_size(model.nbytes)}, "
            f"{model.bits_per_weight:.2f} bits per weight",
            tables.budget_line(model.plan),
        )
        if "evaluation" in model.metadata:
            comparison = Comparison.from_json(model.metadata["evaluation"])
            show("", tables.comparison_table(comparison), f"measured on {comparison.measured_on}")
    show("", tables.tensors_table(model, limit=limit))


def _to_json(model: CapturedModel | CompressedModel) -> dict[str, Any]:
    from edgesparse.model import CapturedModel

    captured = model if isinstance(model, CapturedModel) else model.captured
    data: dict[str, Any] = {
        "name": captured.name,
        "source": {"kind": captured.source.kind, "location": captured.source.location},
        "task": captured.task,
        "parameters": captured.num_parameters,
        "nbytes": model.nbytes,
        "tensors": [
            {
                "name": tensor.name,
                "kind": tensor.kind.value,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "aliases": list(tensor.aliases),
                "compressible": tensor.compressible,
            }
            for tensor in captured.tensors
        ],
    }
    if isinstance(model, CapturedModel):
        return data
    for entry in data["tensors"]:
        packed = model.packed.get(entry["name"])
        if packed is not None:
            entry |= {
                "format": packed.spec.name,
                "bits": packed.spec.bits,
                "group_size": packed.spec.group_size,
                "scheme": packed.spec.scheme,
                "table_rows": packed.spec.table_rows,
                "pattern": str(packed.spec.pattern),
                "sparsity": packed.codes.sparsity,
                "nbytes": packed.nbytes,
                "error": model.errors.get(entry["name"]),
            }
    return {
        **data,
        "bits_per_weight": model.bits_per_weight,
        "sparsity": model.sparsity,
        "evaluation": model.metadata.get("evaluation"),
    }


def _show_artifact(
    path: str, contents: Mapping[str, Any], *, limit: int | None, as_json: bool
) -> None:
    if as_json:
        show_json(contents)
        return
    from edgesparse.budget import format_size
    from edgesparse.exporting import nbytes_on_disk
    from edgesparse.report.contents import contents_tables

    show(f"{path}  {format_size(nbytes_on_disk(Path(path)))}", "")
    show(*contents_tables(contents, limit=limit))
