"""The compilers' own warnings and progress, kept out of a user's terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The last says on every use which systems a delegate is for.
_LOGGERS = (
    "torch", "torchao", "root", "executorch",
    "executorch.backends.apple.coreml.compiler.coreml_preprocess",
)  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, and what torch and ExecuTorch log below an error, within a block."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
