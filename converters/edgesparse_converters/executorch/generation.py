"""Greedy generation and scores by a program with a cache, in the ExecuTorch runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse.executing import losses
from edgesparse_converters.executorch.program import Program, read_program
from edgesparse_converters.executorch.speaking import constants, open_language_model


def generate(
    path: Path, prompt: Sequence[int], *, tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Continue ``prompt`` with the likeliest tokens.

    Args:
        path: A ``.pte`` exported with ``context``.
        prompt: Token ids, at least one.
        tokens: How many to make.

    Returns:
        The new tokens [tokens] and the logits each was chosen from [tokens, V].

    Raises:
        UsageError: No program with a cache, or more tokens than its context.
        SourceError: The file is damaged, or the runtime failed.
    """
    context = context_of(read_program(path))
    if not prompt or tokens < 1 or len(prompt) + tokens - 1 > context:
        raise UsageError(
            f"{len(prompt)} tokens of prompt and {tokens} to make; {path.name} has room for 1 to "
            f"{context} together"
        )
    with open_language_model(path) as model:
        logits = [model.read(np.array(prompt, np.int64))[-1]]
        made = [int(logits[-1].argmax())]
        while len(made) < tokens:
            logits.append(model.read(np.array(made[-1:], np.int64))[0])
            made.append(int(logits[-1].argmax()))
    return np.array(made), np.stack(logits)


def score(path: Path, windows: Sequence[Sequence[int]]) -> float:
    """Return the mean negative log-likelihood, in nats a token, of windows of text.

    Every window is read from an empty cache; its first token is not predicted.

    Args:
        path: A ``.pte`` exported with ``context``.
        windows: Token ids, each of 2 to ``context``.

    Raises:
        UsageError: No program with a cache, or a window of another length.
        SourceError: The file is damaged, or the runtime failed.
    """
    context = context_of(read_program(path))
    if not windows or not all(2 <= len(window) <= context for window in windows):
        raise UsageError(f"windows must have 2 to {context} tokens, the context of {path.name}")
    found = []
    with open_language_model(path) as model:
        for window in windows:
            tokens = np.array(window, np.int64)
            model.reset()
            found.append(losses(model.read(tokens), tokens))
    return float(np.concatenate(found).mean())


def context_of(program: Program) -> int:
    """Return how many positions the cache of a program has.

    Raises:
        UsageError: It has none.
    """
    found = constants(program, "get_max_context_len")
    if not found or "prefill" not in program.methods:
        raise UsageError(f"{program.path.name} has no cache; export it with context=512")
    return found[0]
