"""What a written file can do on this host beside one run: speak, and be timed.

These are abilities that a row of ``EXPORTERS`` may have; a row without one is refused by name. A
target brings the execution; texts, tokens, sampling and sums are the same for all and live here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError, Unsupported, UsageError
from edgesparse.exporting import exporter_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Progress = Callable[[int, int], None]


class LanguageModel(Protocol):
    """A file opened to read tokens; what it has read is kept between calls.

    Attributes:
        context: Most tokens it can have read.
        end_tokens: Tokens that end a text.
    """

    context: int
    end_tokens: frozenset[int]

    def reset(self) -> None:
        """Forget all tokens."""

    def read(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read ``tokens`` [T] after those before them; return the logits [T, V] of each.

        Raises:
            SourceError: The runtime failed.
        """


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """What the calls of one operator took in one run.

    Attributes:
        name: The operator, in the runtime's words.
        calls: How often it is called.
        milliseconds: All its calls together, the median over runs.
    """

    name: str
    calls: int
    milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of a file on this host, in milliseconds.

    Attributes:
        what: What one run is, for people: ``one token``, ``forward``.
        load: To load the program, once.
        runs: How many runs were timed, after one that was not.
        median: Of one run.
        fastest: The shortest run.
        operators: The slowest first; empty where the runtime cannot tell.
    """

    what: str
    load: float
    runs: int
    median: float
    fastest: float
    operators: tuple[OperatorTime, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How well a file predicts a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a prediction.
        windows: Windows of the text it read, each from an empty state.
        tokens: Predictions scored.
    """

    perplexity: float
    windows: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)


@runtime_checkable
class Speaking(Protocol):
    """A row whose files can be language models."""

    def open_language_model(self, path: Path) -> AbstractContextManager[LanguageModel]:
        """Open ``path``.

        Raises:
            UsageError: It is no language model.
            SourceError: It is damaged.
        """


@runtime_checkable
class Timed(Protocol):
    """A row whose files can be timed."""

    def measure(self, path: Path, *, runs: int, threads: int | None) -> Timing:
        """Time ``runs`` runs of ``path``; None leaves the number of threads to the runtime."""


def score_text(
    path: str | Path,
    text: str | Path,
    *,
    tokenizer: str | Path | None = None,
    window: int = 512,
    max_windows: int | None = None,
    progress: Progress | None = None,
) -> TextScore:
    """Return how well an artifact predicts a text, every token through its runtime.

    Args:
        path: The artifact, a language model.
        text: Path of a UTF-8 text.
        tokenizer: A ``tokenizer.json`` or a directory with one; None looks beside the artifact.
        window: Tokens in a window.
        max_windows: Read only so many, from the beginning.
        progress: Called with (windows done, windows in all).

    Raises:
        UsageError: The artifact is no language model, or a window it has no room for.
        SourceError: No tokenizer, a text that is too short, a damaged artifact.
    """
    from edgesparse.runtime.text import cut_windows, read_text, token_ids

    path = Path(path)
    row = _able(path, Speaking, "read text")
    tokens = token_ids(find_tokenizer(path, tokenizer), read_text(text))
    windows = cut_windows(tokens, window=window, name=str(text))[:max_windows]
    total = 0.0
    with row.open_language_model(path) as model:
        if not 2 <= window <= model.context:
            raise UsageError(
                f"a window of {window} tokens; {path.name} reads 2 to {model.context} at once"
            )
        for done, each in enumerate(windows, start=1):
            model.reset()
            total += float(losses(model.read(each), each).sum())
            if progress is not None:
                progress(done, len(windows))
    count = len(windows) * (window - 1)
    return TextScore(perplexity=float(np.exp(total / count)), windows=len(windows), tokens=count)


def stream_text(
    path: str | Path,
    prompt: str,
    *,
    tokenizer: str | Path | None = None,
    tokens: int = 60,
    temperature: float = 0.8,
    top_k: int | None = 40,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` by an artifact, as it is made in its runtime.

    Options are those of ``edgesparse.runtime.stream``.

    Raises:
        UsageError: The artifact is no language model, or an option out of range.
        SourceError: No tokenizer, a prompt without room, a damaged artifact.
    """
    import torch

    from edgesparse.runtime.generate import check_sampling, continue_tokens, encode

    check_sampling(tokens=tokens, temperature=temperature, top_k=top_k)
    path = Path(path)
    row, spoken = _able(path, Speaking, "continue text"), find_tokenizer(path, tokenizer)
    with row.open_language_model(path) as model:
        ids = encode(spoken, prompt, model.context)
        yield from continue_tokens(
            lambda new: torch.from_numpy(model.read(new[0].numpy())[-1].copy()),
            ids,
            decode=spoken.decode,
            stop=model.end_tokens,
            tokens=min(tokens, model.context - len(ids)),
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )


def measure(path: str | Path, *, runs: int = 20, threads: int | None = None) -> Timing:
    """Time an artifact on this host.

    Args:
        path: The artifact.
        runs: How many runs to time.
        threads: How many threads; None leaves it to the runtime.

    Raises:
        UsageError: A number out of range.
        Unsupported: Nothing here can time files of this target.
        SourceError: No such file, or damaged.
    """
    if runs < 1 or (threads is not None and threads < 1):
        raise UsageError(f"runs {runs} with threads {threads}; both begin at 1")
    path = Path(path)
    found: Timing = _able(path, Timed, "be timed").measure(path, runs=runs, threads=threads)
    return found


def find_tokenizer(path: Path, given: str | Path | None) -> Tokenizer:
    """Return the tokenizer of an artifact: the one given, else the one that lies beside it.

    Beside ``out/model.pte`` are ``out/tokenizer.json`` and, as ``compress -o out/model`` leaves it,
    ``out/model/tokenizer.json``.

    Raises:
        SourceError: There is none.
    """
    from edgesparse.runtime.text import read_tokenizer

    if given is not None:
        places = [Path(given), Path(given) / "tokenizer.json"]
    else:
        places = [path.with_suffix("") / "tokenizer.json", path.parent / "tokenizer.json"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SourceError(
            f"{path.name} holds no tokenizer; none is at {places[0]} or {places[1]}; name "
            "the model it was made from with --source DIR"
        )
    return read_tokenizer(found)


def _able(path: Path, ability: type[Any], what: str) -> Any:
    """Return the row for ``path``, which must have the ability."""
    target, row = exporter_of(path)
    if not isinstance(row, ability):
        raise Unsupported(f"{path.name}: files of {target} cannot {what} on this host")
    return row


def losses(logits: NDArray[np.float32], tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative log-likelihood of every token but the first, float64 [T - 1].

    Args:
        logits: float32 [T, V]; row t predicts token t + 1.
        tokens: int64 [T].
    """
    rows = logits[:-1].astype(np.float64)
    top = rows.max(axis=1, keepdims=True)
    total = np.log(np.exp(rows - top).sum(axis=1)) + top[:, 0]
    found: NDArray[np.float64] = total - rows[np.arange(len(rows)), tokens[1:]]
    return found
