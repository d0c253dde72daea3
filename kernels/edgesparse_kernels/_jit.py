"""How kernels are compiled: the one place that knows numba's options.

Kernels are cached on disk beside this package, or where ``NUMBA_CACHE_DIR`` says. numba does not
see that a function called by a cached kernel has changed, so every kernel is cached under a name
that carries a digest of the whole package: a change anywhere compiles all of it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypeVar
from zlib import crc32

import numba
from numba import njit
from numba.extending import overload

P = ParamSpec("P")
R = TypeVar("R")


def _digest() -> str:
    """Return eight digits that change with the source of any kernel."""
    total = 0
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total = crc32(path.read_bytes(), total)
    return f"{total:08x}"


_DIGEST = _digest()


def _stamped(function: Callable[P, R], suffix: str = "") -> Callable[P, R]:
    """Return the same function under the name by which numba's cache will know it."""
    assert isinstance(function, FunctionType)
    name = f"{function.__name__}{suffix}"
    copy = FunctionType(function.__code__, function.__globals__, name)
    copy.__qualname__, copy.__module__ = f"{name}_{_DIGEST}", function.__module__
    copy.__doc__ = function.__doc__
    return copy


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a loop whose every index was checked when its pack was opened."""
    compiled: Callable[P, R] = njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")(
        _stamped(function)
    )
    return compiled


def jit_into(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a part of a loop so that LLVM puts it into its callers, however large it finds it.

    A call of a function that takes a matrix pushes a dozen numbers, as much work as a small group.
    """
    compiled: Callable[P, R] = njit(
        cache=True, nogil=True, boundscheck=False, error_model="numpy", forceinline=True
    )(_stamped(function))
    return compiled


def jit_reassociate(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a loop that may sum float32 in any order; NaN and infinities keep their meaning."""
    compiled: Callable[P, R] = njit(
        cache=True,
        nogil=True,
        boundscheck=False,
        error_model="numpy",
        fastmath={"reassoc", "contract", "nsz"},
    )(_stamped(function))
    return compiled


def serial_and_parallel(function: Callable[P, R]) -> tuple[Callable[P, R], Callable[P, R]]:
    """Compile one loop twice: its ``prange`` on one thread, and on many.

    The parallel form is compiled when it is first called, which most processes never do.
    """
    # Under a name of its own: numba's cache tells functions apart by name, not by options.
    serial: Callable[P, R] = njit(cache=True, nogil=True, error_model="numpy")(_stamped(function))
    parallel: Callable[P, R] = njit(cache=True, nogil=True, error_model="numpy", parallel=True)(
        _stamped(function, "_parallel")
    )
    return serial, parallel


@contextmanager
def workers(count: int) -> Iterator[None]:
    """Let the parallel kernels of this thread use ``count`` threads for a while, and wake no more.

    One is nobody's to wake: then serial kernels run, and numba, which takes 6 µs, is told nothing.

    A loop of two parts is otherwise handed to all the threads a process may have, and waits for
    all: with eight a product of 1024 by 1024 on two threads took 113 µs instead of 43.
    """
    before, wanted = numba.get_num_threads(), max(1, min(count, numba.config.NUMBA_NUM_THREADS))
    if wanted in (1, before):
        yield
        return
    numba.set_num_threads(wanted)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Compile into each caller: every level of calls is optimized anew with all it calls."""
    compiled: Callable[P, R] = njit(inline="always", boundscheck=False, error_model="numpy")(
        function
    )
    return compiled


def by_isa(choose: Callable[[Any], Any]) -> Any:
    """Return a function of (isa, ...) that is compiled as the one ``choose`` has for that set.

    Args:
        choose: From an ``_isa.IsaType`` to a compiled function of (isa, ...).
    """

    def stub(isa: object, *arguments: object) -> None:
        raise NotImplementedError("only compiled functions call it")

    # numba compares the names of its arguments, annotations too, with those of what it returns.
    @overload(stub)
    def chosen_for(isa, *arguments):  # type: ignore[no-untyped-def]
        chosen = choose(isa)
        return lambda isa, *arguments: chosen(isa, *arguments)

    return stub


def by_set(general: Callable[..., Any], avx2: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is ``avx2`` where its first argument is that set, else ``general``.

    Unlike those of ``by_isa`` both are plain functions, and numba puts the one that is taken into
    its caller: no call is left that would count references to the arrays it is given.
    """

    def stub(*arguments: object) -> None:
        raise NotImplementedError("only compiled functions call it")

    options = {"boundscheck": False, "error_model": "numpy"}

    @overload(stub, jit_options=options, strict=False, inline="always")
    def chosen_for(isa, *arguments):  # type: ignore[no-untyped-def]
        return avx2 if isa.isa == "avx2" else general

    return stub


def entry(function: Callable[P, R], *arguments: object) -> Callable[P, R]:
    """Return ``function`` compiled for arguments of these types, to be called with no others.

    Called directly it skips numba's look at the types of its arguments, which for a matrix and its
    scratch takes 10 µs, as long as a small product.
    """
    types = tuple(
        found.copy(readonly=False) if isinstance(found, numba.types.Array) else found
        for found in map(numba.typeof, arguments)
    )
    function.compile(types)  # type: ignore[attr-defined]
    compiled: Callable[P, R] = function.get_overload(types)  # type: ignore[attr-defined]
    return compiled


def is_enabled() -> bool:
    """Whether numba compiles; under ``NUMBA_DISABLE_JIT=1`` callers use the NumPy reference."""
    return not numba.config.DISABLE_JIT
