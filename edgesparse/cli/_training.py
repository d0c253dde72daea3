"""What commands that train say while they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgesparse.cli._console import Step, remark, verbosity

if TYPE_CHECKING:
    from edgesparse.recovery.blockwise import BlockProgress
    from edgesparse.recovery.progress import RecoveryProgress


def each_step(step: Step, *, says_every: int | None = 1) -> Callable[[RecoveryProgress], None]:
    """Return what training calls after every step: the bar moves, --verbose says the loss.

    Args:
        step: Moves the bar.
        says_every: After how many steps the loss is said; None never does.
    """

    def each(progress: RecoveryProgress) -> None:
        step(int(1000 * progress.fraction), 1000)
        if says_every and verbosity().verbose and progress.step % says_every == 0:
            remark(f"step {progress.step}: loss {progress.loss:.4f}")

    return each


def each_block(step: Step) -> Callable[[BlockProgress], None]:
    """Return what block-wise recovery calls after every block: --verbose says its errors."""

    def each(progress: BlockProgress) -> None:
        step(progress.done, progress.total)
        if verbosity().verbose:
            errors = f"{progress.before:.2e} before, {progress.after:.2e} after"
            remark(f"{progress.block}: relative output error {errors}")

    return each
