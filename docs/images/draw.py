"""Draw the pictures of concepts.md from the bundled model: masks, groups, a budget.

    python docs/images/draw.py

Colours are mid-tones on nothing, so that the pictures read on light and on dark paper.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

import edgesparse as es
from edgesparse.quantize.grid import Grid

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "examples/models/classics-4m"
WEIGHT = "model.layers.1.mlp.up_proj.weight"
INK, BLUE, GREEN, AMBER, VIOLET = "#7d879c", "#3f6fb5", "#2f8f73", "#c98a1b", "#7a5bb0"
PATTERNS = {
    "anywhere, 50 %": es.Pattern(sparsity=0.5),
    "2:4": es.Pattern(keep=2, of=4),
    "16:64": es.Pattern(keep=16, of=64),
    "16x1, 50 %": es.Pattern(sparsity=0.5, block=(16, 1)),
}


def masks(weight: torch.Tensor) -> None:
    """Show the same corner of one weight under each pattern, kept weights dark."""
    from edgesparse.prune.masks import keep_highest

    figure, axes = plt.subplots(1, len(PATTERNS), figsize=(9, 2.4), layout="constrained")
    for axis, (title, pattern) in zip(axes, PATTERNS.items(), strict=True):
        keep = keep_highest(weight.abs(), pattern)[:48, :64].numpy()
        axis.imshow(keep, cmap=ListedColormap(["#00000000", BLUE]), interpolation="nearest")
        axis.set_title(title, color=INK, fontsize=10)
        _frame(axis)
    figure.savefig(HERE / "masks.svg", transparent=True)


def groups(weight: torch.Tensor) -> None:
    """Show 64 weights of a row and what 4-bit codes make of them with one scale or with four."""
    row = weight[:1, :64].clone()
    row[0, 37] *= 3  # one large weight is what small groups are for
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
    for axis, size in zip(axes, (64, 16), strict=True):
        grid = Grid(bits=4, group_size=size)
        scales = grid.by_column(grid.search(row), 64)
        rounded = (grid.codes(row, scales) * scales)[0].numpy()
        axis.stem(row[0].numpy(), linefmt=INK, markerfmt=" ", basefmt=" ")
        axis.plot(rounded, "_", color=BLUE, markersize=7, markeredgewidth=2)
        for edge in range(size, 64, size):
            axis.axvline(edge - 0.5, color=AMBER, linewidth=1)
        error = float(np.square(rounded - row[0].numpy()).mean() ** 0.5)
        axis.set_title(f"group_size={size}: error {error:.4f}", color=INK, fontsize=10)
        _frame(axis)
    figure.savefig(HERE / "groups.svg", transparent=True)


def budget(model: es.CapturedModel) -> None:
    """Show where the bytes go: as it is, and planned for 2 MB."""
    plan = es.plan(model, budget=es.Budget(file="2MB"))
    kinds = sorted({tensor.kind.value for tensor in model.tensors})
    whole = {k: sum(t.nbytes for t in model.tensors if t.kind.value == k) for k in kinds}
    small = {k: sum(p.nbytes for p in plan.tensors if p.tensor.kind.value == k) for k in kinds}
    figure, axis = plt.subplots(figsize=(9, 1.7), layout="constrained")
    rows = (("float16", whole), ("planned for 2 MB", small))
    for y, (label, sizes) in enumerate(reversed(rows)):
        left = 0.0
        for kind, colour in zip(kinds, (VIOLET, BLUE, GREEN, AMBER), strict=False):
            width = sizes[kind] / 1e6
            axis.barh(y, width, left=left, color=colour, label=kind if y else None)
            left += width
        axis.text(left + 0.08, y, f"{label}: {left:.2f} MB", va="center", color=INK)
    axis.axvline(2, color=INK, linewidth=1)
    axis.set_xlim(0, 10.5)
    axis.legend(loc="lower right", frameon=False, labelcolor=INK, ncols=len(kinds))
    _frame(axis)
    figure.savefig(HERE / "budget.svg", transparent=True)


def _frame(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def main() -> None:
    """Write the three pictures beside this file."""
    # Text as text, and no date or random names: the same input draws the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "edgesparse"})
    model = es.load(MODEL)
    weight = model.loader().get_parameter(WEIGHT).detach().float()
    masks(weight)
    groups(weight)
    budget(model)


if __name__ == "__main__":
    main()
