"""What a recovery takes for sure, in memory and on disk, asked for before it begins."""

from __future__ import annotations

from pathlib import Path

from edgesparse.memory import require_memory
from edgesparse.model import CompressedModel
from edgesparse.store.space import require_space

# Bytes a packed weight: the value that is trained, its gradient and two moments in float32; its
# mask; the dense teacher's value.
_TRAINED = 16 + 1 + 4
_BUILT = 4 + 1 + 4  # without gradient and moments, which other memory holds
_SAVED = 4 + 8 + 1  # value, moments, mask
_BEST = 4 + 1  # the best state by the held-out text, beside them
_BOTH = 4 + 4  # bytes a parameter: the dense and the decoded model


def require_room(
    compressed: CompressedModel, *, held_whole: bool, checkpoint: Path | None, keeps_best: bool
) -> None:
    """Check that there is memory for training, and room on the disk for its state.

    Args:
        compressed: What is trained.
        held_whole: Whether this process' own memory holds all that training needs, not only the
            two models before they are given to devices or other processes.
        checkpoint: The file the state is written to.
        keeps_best: Whether the state holds the best values too.

    Raises:
        UsageError: There is less memory.
        FormatError: There is less room.
    """
    weights = sum(packed.codes.values.size for packed in compressed.packed.values())
    require_memory(
        weights * (_TRAINED if held_whole else _BUILT),
        f"{compressed.captured.name}: training {weights:,} packed weights",
        "recover block by block (recover_blockwise), or share the work out with torchrun",
    )
    if checkpoint is not None:
        # The new state is written beside the one before.
        require_space(checkpoint, 2 * weights * (_SAVED + (_BEST if keeps_best else 0)))


def require_both(compressed: CompressedModel) -> None:
    """Check that there is memory for the two models that block-wise recovery runs.

    Raises:
        UsageError: There is less.
    """
    require_memory(
        _BOTH * compressed.captured.num_parameters,
        f"{compressed.captured.name}: the dense and the compressed model in float32",
        "use a machine with more memory",
    )
