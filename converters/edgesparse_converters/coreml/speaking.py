"""A language model in a package, as ``edgesparse.executing`` reads token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesparse_converters.coreml.language import LanguageModel
from edgesparse_converters.coreml.readback import recorded


class SpokenPackage:
    """A package on the host executor, in float32.

    Attributes:
        context: Most tokens it can have read.
        end_tokens: Tokens that end a text, as the exporter recorded them.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.context = model.context
        ends = recorded(model.package).get("end_tokens")
        known = ends if isinstance(ends, list) else []
        self.end_tokens = frozenset(token for token in known if isinstance(token, int))

    def reset(self) -> None:
        """Forget all tokens."""
        self._model.reset()

    def read(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read ``tokens`` [T] after those before them; return the logits [T, V] of each."""
        return self._model.feed(tokens.tolist())


@contextmanager
def open_language_model(path: Path) -> Iterator[SpokenPackage]:
    """Open a package that is a language model, with state or of a fixed length.

    Raises:
        SourceError: It is damaged, or no language model.
        Unsupported: It has operators the host executor does not know.
    """
    yield SpokenPackage(LanguageModel(path))
