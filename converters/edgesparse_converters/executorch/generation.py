"""Greedy generation by a program with a cache, in the ExecuTorch runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import UsageError
from edgesparse_converters.executorch.program import Program, read_program
from edgesparse_converters.executorch.session import run_child


def generate(
    path: Path, prompt: Sequence[int], *, tokens: int, timeout: float = 600.0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Continue ``prompt`` with the likeliest tokens.

    Args:
        path: A ``.pte`` exported with ``context``.
        prompt: Token ids, at least one.
        tokens: How many to make.
        timeout: Seconds after which it is stopped.

    Returns:
        The new tokens [tokens] and the logits each was chosen from [tokens, V].

    Raises:
        UsageError: No program with a cache, or more tokens than its context.
        SourceError: The file is damaged, or the runtime failed.
    """
    program = read_program(path)
    context = context_of(program)
    if not prompt or tokens < 1 or len(prompt) + tokens - 1 > context:
        raise UsageError(
            f"{len(prompt)} tokens of prompt and {tokens} to make; {path.name} has room for 1 to "
            f"{context} together"
        )
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        np.save(Path(folder) / "prompt.npy", np.array(prompt, np.int64))
        run_child(["generate", str(path), folder, str(tokens)], path, timeout)
        made = np.load(Path(folder) / "tokens.npy", allow_pickle=False)
        return made, np.load(Path(folder) / "logits.npy", allow_pickle=False)


def score(path: Path, windows: Sequence[Sequence[int]], *, timeout: float = 3600.0) -> float:
    """Return the mean negative log-likelihood, in nats a token, of windows of text.

    Every window is read from an empty cache by ``prefill``; its first token is not predicted.

    Args:
        path: A ``.pte`` exported with ``context``.
        windows: Token ids, each of 2 to ``context``.
        timeout: Seconds after which it is stopped.

    Raises:
        UsageError: No program with a cache, or a window of another length.
        SourceError: The file is damaged, or the runtime failed.
    """
    context = context_of(read_program(path))
    if not windows or not all(2 <= len(window) <= context for window in windows):
        raise UsageError(f"windows must have 2 to {context} tokens, the context of {path.name}")
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        arrays = [np.array(window, np.int64) for window in windows]
        np.savez(Path(folder) / "windows.npz", *arrays)
        run_child(["score", str(path), folder], path, timeout)
        losses = np.load(Path(folder) / "losses.npy", allow_pickle=False)
        return float(losses.mean())


def context_of(program: Program) -> int:
    """Return how many positions the cache of a program has.

    Raises:
        UsageError: It has none.
    """
    plan = program.methods.get("get_max_context_len")
    if plan is None or "prefill" not in program.methods:
        raise UsageError(f"{program.path.name} has no cache; export it with context=512")
    return int(plan["values"][plan["outputs"][0]]["val"]["int_val"])
