"""What coremltools 9.0 needs to work with torch 2.13 and numpy 2.4: every fix, and its reason.

Applied once per process by ``apply``; nothing in site-packages is edited. For each fix a test
tells when the installed coremltools no longer needs it (``converters/tests/coreml``).

1. ``int(array([n]))`` is a TypeError since numpy 2.4; coremltools' ``_cast`` does it.
   https://github.com/apple/coremltools/issues/2633
2. ``aten.alias`` has no translator. https://github.com/apple/coremltools/issues/2569
3. Translators exist that refuse the arguments torch 2.13 gives ``new_ones`` and ``rms_norm``; they
   are decomposed like operators without a translator (``frontend.lower``).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from typing import Any

import numpy as np


@cache
def apply() -> None:
    """Import coremltools (about seven seconds) and fix it for this process."""
    with quiet():
        import coremltools.converters.mil.frontend.torch.ops as ops
        from coremltools.converters.mil.frontend.torch.torch_op_registry import (
            _TORCH_OPS_REGISTRY,
            register_torch_op,
        )
    ops._cast = _cast
    if _TORCH_OPS_REGISTRY.get_func("alias") is None:
        register_torch_op(alias)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools to itself: progress bars, and the news that it cannot predict off macOS.

    Warnings of torch's own tracing, which no caller can do anything about, are dropped too.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def alias(context: Any, node: Any) -> None:
    """Translate ``aten.alias``: the same value under another name."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    context.add(mb.identity(x=context[node.inputs[0]], name=node.name))


def _cast(context: Any, node: Any, dtype: type, dtype_name: str) -> None:
    """Translate a cast of one element; as coremltools does, but safe for arrays of rank one."""
    import coremltools.converters.mil.frontend.torch.ops as ops
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    x = ops._get_inputs(context, node, expected=1)[0]
    if any(size != 1 for size in x.shape):
        raise ValueError(f"cast of shape {x.shape} to {dtype_name}: expected one element")
    if x.can_be_folded_to_const():
        same = isinstance(x.val, dtype)
        result = x if same else mb.const(val=dtype(np.asarray(x.val).item()), name=node.name)
    else:
        scalar = mb.squeeze(x=x, name=f"{node.name}_item") if x.shape else x
        result = mb.cast(x=scalar, dtype=dtype_name, name=node.name)
    context.add(result, node.name)
