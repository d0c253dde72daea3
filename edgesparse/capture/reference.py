"""Capture what a user's own function returns: ``package.module:factory``.

The only source that runs code, and only when the user types it: a saved model never causes an
import.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from torch import nn

from edgesparse.capture.module import capture_module
from edgesparse.errors import SourceError
from edgesparse.model import CapturedModel, Source

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_reference(text: str) -> bool:
    """Whether ``text`` reads ``package.module:factory``."""
    return _REFERENCE.fullmatch(text) is not None


def capture_reference(reference: str) -> CapturedModel:
    """Import the module, call the factory and capture the ``(module, example inputs)`` it returns.

    The current directory is searched as well, as ``python -m`` does.

    Raises:
        SourceError: The import or the call fails, or something else is returned.
    """
    made = _call(reference)
    match made:
        case (nn.Module() as module, inputs):
            source = Source(kind="reference", location=reference)
            return capture_module(module, inputs, source=source)
    raise SourceError(
        f"{reference} returned {type(made).__name__}; expected a pair of an nn.Module and its "
        "example inputs, by name or by position"
    )


def _call(reference: str) -> Any:
    module_name, _, path = reference.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        target: Any = importlib.import_module(module_name)
        for name in path.split("."):
            target = getattr(target, name)
        return target()
    except Exception as error:  # the user's own code may fail in any way
        raise SourceError(f"{reference}: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
