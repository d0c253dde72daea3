"""Text for language models: read, tokenize with the source's own tokenizer, cut into windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import MissingDependency, SourceError
from edgesparse.model import CapturedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        SourceError: No such file, a directory, not UTF-8, or nothing in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}; "
            "convert it, for example with iconv"
        ) from None
    if not text.strip():
        raise SourceError(f"{path} holds no text")
    return text


def tokenizer(captured: CapturedModel) -> Tokenizer:
    """Return the source's own fast tokenizer.

    Raises:
        SourceError: The source has no tokenizer.json.
        MissingDependency: The package tokenizers is not installed.
    """
    path = next((p for p in captured.source.files if p.name == "tokenizer.json"), None)
    if path is None:
        raise SourceError(
            f"{captured.name} has no tokenizer.json, so text means nothing to it; "
            "give inputs instead"
        )
    return read_tokenizer(path)


@lru_cache(maxsize=2)
def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a ``tokenizer.json``.

    Raises:
        SourceError: It cannot be read.
        MissingDependency: The package tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingDependency("tokenizers", "huggingface", "reading text") from None
    with _refusing(f"cannot read the tokenizer {path}"):
        return Tokenizer.from_file(str(path))


def token_ids(spoken: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a text, without special tokens.

    Raises:
        SourceError: The tokenizer contradicts itself.
    """
    with _refusing("the source's tokenizer.json is damaged"):
        ids: list[int] = spoken.encode(text, add_special_tokens=False).ids
    return ids


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what the Rust library raises into one sentence: bare Exception, and its panics."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise SourceError(f"{what}: {error}") from None


def token_windows(captured: CapturedModel, text: str, *, window: int, name: str) -> Tensor:
    """Return the text's tokens in windows without overlap, int64 of shape (windows, window).

    Tokens after the last whole window are left out. No special tokens are added.

    Args:
        captured: Whose tokenizer to use.
        text: The text.
        window: Tokens in a window.
        name: What to call the text in a message.

    Raises:
        SourceError: Fewer tokens than one window, or tokens the model does not know.
    """
    tokens = token_ids(tokenizer(captured), text)
    windows = cut_windows(tokens, window=window, name=name)
    vocabulary = captured.config.get("vocab_size")
    if isinstance(vocabulary, int) and max(tokens) >= vocabulary:
        raise SourceError(
            f"the tokenizer makes token {max(tokens)}, but the model knows {vocabulary}; "
            "tokenizer and model do not belong together"
        )
    return torch.from_numpy(windows)


def cut_windows(tokens: Sequence[int], *, window: int, name: str) -> NDArray[np.int64]:
    """Return tokens in windows without overlap, int64 [windows, window]; the rest is left out.

    Args:
        tokens: Of the whole text.
        window: Tokens in a window, at least one.
        name: What to call the text in a message.

    Raises:
        SourceError: Fewer tokens than one window.
    """
    count = len(tokens) // window
    if count == 0:
        raise SourceError(
            f"{name} has {len(tokens)} tokens, fewer than one window of {window}; give a longer "
            "text or a smaller window"
        )
    return np.array(tokens[: count * window], np.int64).reshape(count, window)
