"""How kernels are compiled: the one place that knows numba's options.

Kernels are cached on disk beside this package, or where ``NUMBA_CACHE_DIR`` says. numba does not
see that a function called by a cached kernel has changed, so kernels and what they inline live in
one file.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar

import numba
from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a loop whose every index was checked when its pack was opened."""
    compiled: Callable[P, R] = njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")(
        function
    )
    return compiled


def jit_reassociate(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a loop that may sum float32 in any order; NaN and infinities keep their meaning."""
    compiled: Callable[P, R] = njit(
        cache=True,
        nogil=True,
        boundscheck=False,
        error_model="numpy",
        fastmath={"reassoc", "contract", "nsz"},
    )(function)
    return compiled


def serial_and_parallel(function: Callable[P, R]) -> tuple[Callable[P, R], Callable[P, R]]:
    """Compile one loop twice: its ``prange`` on one thread, and on many.

    The parallel form is compiled when it is first called, which most processes never do.
    """
    serial: Callable[P, R] = njit(cache=True, nogil=True, error_model="numpy")(function)
    # Under a name of its own: numba's cache tells functions apart by name, not by options.
    assert isinstance(function, FunctionType)
    twin = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_parallel")
    twin.__qualname__, twin.__module__ = twin.__name__, function.__module__
    parallel: Callable[P, R] = njit(cache=True, nogil=True, error_model="numpy", parallel=True)(
        twin
    )
    return serial, parallel


def is_enabled() -> bool:
    """Whether numba compiles; under ``NUMBA_DISABLE_JIT=1`` callers use the NumPy reference."""
    return not numba.config.DISABLE_JIT
