"""Language models in packages: feed tokens, continue a text, measure perplexity, on this host.

A package with a cache (``context=`` at export) is fed in pieces, the longest function first. One
without is fed all at once, padded at the end to the length it was written for, if that is fixed:
what stands behind a token cannot reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgesparse.errors import SourceError, UsageError
from edgesparse.exporting import nbytes_on_disk
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.runtime.evaluate import Evaluation
from edgesparse.runtime.score import Tally
from edgesparse.runtime.text import read_text, token_windows
from edgesparse_converters.coreml.execute import Executor, Precision
from edgesparse_converters.coreml.interpreter import State
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import recorded

Choose = Callable[[NDArray[np.float32]], int]
Progress = Callable[[int, int], None]


class LanguageModel:
    """A package that takes tokens and returns logits, with its position and state.

    Args:
        package: The package, or its path.
        precision: ``float32`` or ``float16``.

    Raises:
        SourceError: The package is damaged or is no language model.
        Unsupported: It has operators the host executor does not know.
    """

    def __init__(self, package: Package | Path, *, precision: Precision = "float32") -> None:
        self.package = package if isinstance(package, Package) else Package(package)
        names = self.package.program.functions
        every = [Executor(self.package, precision=precision, function=name) for name in names]
        self._executors = {_length(executor): executor for executor in every}
        self._open = any(None in kind.shape for e in every for kind in e.inputs.values())
        self._stateful = all("positions" in executor.inputs for executor in every)
        self._tokens: list[int] = []
        self._state: State = {}
        self.reset()

    @property
    def context(self) -> int:
        """The most tokens it takes, prompt and continuation together."""
        if not self._stateful:
            return max(self._executors)
        states = next(iter(self._executors.values())).make_state()
        return int(next(iter(states.values())).shape[2])

    def reset(self) -> None:
        """Forget all tokens."""
        self._tokens = []
        self._state = next(iter(self._executors.values())).make_state()

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits after each of ``tokens``, shape (len(tokens), vocabulary).

        Raises:
            UsageError: No tokens, or more than the context has room for.
        """
        room = self.context - len(self._tokens)
        if not 0 < len(tokens) <= room:
            raise UsageError(
                f"{len(tokens)} tokens; expected 1 to {room}, the room left in the context"
            )
        if not self._stateful:
            return self._feed_whole(tokens)
        parts = []
        while tokens:
            length = max(n for n in self._executors if n <= len(tokens))
            parts.append(self._feed_part(tokens[:length]))
            tokens = tokens[length:]
        return np.concatenate(parts)

    def _feed_part(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        start, end = len(self._tokens), len(self._tokens) + len(tokens)
        inputs = {
            "input_ids": np.array([tokens], np.int32),
            "positions": np.arange(start, end, dtype=np.int32),
        }
        logits = self._executors[len(tokens)].run(inputs, self._state)["logits"]
        self._tokens.extend(tokens)
        return np.asarray(logits[0], np.float32)

    def _feed_whole(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        ((length, executor),) = self._executors.items()
        self._tokens.extend(tokens)
        # An open length is fed as it is, but torch traced it for two tokens and more.
        (name,) = executor.inputs
        allowed = self.package.program.shapes.get(name)
        width = max(2, len(self._tokens)) if self._open else length
        width = min(n for _, n in allowed if n >= width) if allowed else width
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(self._tokens)] = self._tokens
        logits = np.asarray(executor.run({name: padded})["logits"][0], np.float32)
        return logits[len(self._tokens) - len(tokens) : len(self._tokens)]


def greedy(logits: NDArray[np.float32]) -> int:
    """Return the likeliest token."""
    return int(logits.argmax())


def sampler(*, temperature: float = 0.8, top_k: int = 40, seed: int = 0) -> Choose:
    """Return a function that draws a token from the ``top_k`` likeliest; same seed, same tokens.

    Raises:
        UsageError: A temperature that is not positive, or no tokens to draw from.
    """
    if not 0 < temperature < float("inf") or top_k < 1:
        raise UsageError(f"temperature {temperature} and top_k {top_k}: both must be positive")
    generator = np.random.default_rng(seed)

    def choose(logits: NDArray[np.float32]) -> int:
        best = np.argsort(-logits, kind="stable")[:top_k]
        scores = logits[best].astype(np.float64) / temperature
        weights = np.exp(scores - scores.max())
        return int(generator.choice(best, p=weights / weights.sum()))

    return choose


def continue_tokens(
    model: LanguageModel, prompt: Sequence[int], *, tokens: int, choose: Choose = greedy
) -> Iterator[int]:
    """Yield up to ``tokens`` tokens that continue ``prompt``, until the context is full.

    Raises:
        UsageError: The prompt is empty or leaves no room.
    """
    model.reset()
    logits = model.feed(prompt)[-1]
    for made in range(min(tokens, model.context - len(prompt))):
        token = choose(logits)
        yield token
        if made + 1 < tokens and len(prompt) + made + 1 < model.context:
            logits = model.feed([token])[-1]


def evaluate_package(
    path: Path,
    model: CapturedModel | CompressedModel,
    *,
    text: str | Path,
    window: int = 512,
    max_windows: int | None = None,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure the perplexity of a package, executed on this host.

    Args:
        path: The package.
        model: What it was made from, for its tokenizer.
        text: Path of a UTF-8 text.
        window: Tokens in a window; the package must take so many.
        max_windows: Stop after so many windows; None measures all.
        precision: ``float32`` or ``float16``.
        progress: Called with (windows done, windows in all).

    Raises:
        UsageError: The package takes fewer tokens than a window.
        SourceError: The package is damaged, or the text cannot be used.
    """
    captured = model if isinstance(model, CapturedModel) else model.captured
    package = LanguageModel(path, precision=precision)
    if package.context < window:
        raise UsageError(
            f"{path.name} takes {package.context} tokens, fewer than a window of {window}; export "
            f"it with tokens={window}, or a context, or measure with window={package.context}"
        )
    windows = token_windows(captured, read_text(text), window=window, name=str(text))[:max_windows]
    tally = Tally()
    for done, tokens in enumerate(windows):
        package.reset()
        logits = torch.from_numpy(package.feed(tokens.tolist()))
        if not torch.isfinite(logits).all():
            raise SourceError(f"{path.name}: the logits of window {done} are not finite")
        tally.add(tokens, logits, None)
        if progress is not None:
            progress(done + 1, len(windows))
    nbytes = nbytes_on_disk(path)
    return Evaluation(
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / captured.num_parameters,
        windows=len(windows),
        tokens=tally.count,
        **tally.means(compared=False),
    )


def _length(executor: Executor) -> int:
    """Return how many tokens a function takes.

    Raises:
        SourceError: It is not a function of tokens.
    """
    shapes = [kind.shape for kind in executor.inputs.values() if len(kind.shape) == 2]
    outputs = executor.function.block.outputs
    length = shapes[0][1] if len(shapes) == 1 and shapes[0][0] == 1 else 0
    if length is None:
        listed = executor.package.program.shapes.values()
        longest = [shape[1] for shapes in listed for shape in shapes if len(shape) == 2]
        length = max(longest, default=recorded(executor.package).get("tokens"))
    if not isinstance(length, int) or length < 1 or "logits" not in outputs:
        raise SourceError(
            f"{executor.package.path}: the function {executor.function.name!r} takes no tokens and "
            "returns no logits: not a language model"
        )
    return length
