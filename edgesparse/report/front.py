"""Draw the front of size against predicted loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgesparse.errors import MissingDependency, UsageError
from edgesparse.planner.types import Plan

_ENDINGS = (".png", ".svg", ".pdf")


def plot_front(
    fronts: Mapping[str, Sequence[Plan]],
    path: Path,
    *,
    title: str,
    chosen: Plan | None = None,
    loss_name: str = "predicted loss",
) -> Path:
    """Draw fronts as lines and a chosen plan as a dot; return ``path``.

    Args:
        fronts: Plans by the name of their line.
        path: Image to write: .png, .svg or .pdf; replaced when it exists.
        title: Shown above.
        chosen: Shown as a dot.
        loss_name: What the loss of these plans is.

    Raises:
        UsageError: Another ending.
        MissingDependency: matplotlib is not installed.
    """
    if path.suffix not in _ENDINGS:
        raise UsageError(f"{path}: expected an image ending in {', '.join(_ENDINGS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("matplotlib", "report", "drawing the front") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="megabytes on file", ylabel=loss_name, xscale="log", yscale="log"
    )
    for name, plans in fronts.items():
        lossy = [made for made in plans if made.loss > 0]  # a logarithm has no zero
        axes.plot(
            [made.file_nbytes / 1e6 for made in lossy], [made.loss for made in lossy],
            marker=".", label=name,
        )  # fmt: skip
    if chosen is not None and chosen.loss > 0:
        axes.plot(chosen.file_nbytes / 1e6, chosen.loss, "o", markersize=9, label="this plan")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    return path
