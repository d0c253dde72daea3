"""Threads that take one compiled call together and meet in the midst of it.

A loop that is handed to a pool for every product wakes the pool thirty times for a token of a small
model. Here threads are woken once for a call, and where one needs what another has computed they
wait for each other in turns, by a counter that each adds to.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from edgesparse_kernels._atomic import add_at, give_way, pause, read_at
from edgesparse_kernels._jit import jit
from edgesparse_kernels.layout import empty

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

PATIENCE = 200  # pauses, some 5 µs; with 1000 threads that share a core take twice as long
_ABANDONED = 1 << 62  # later than any turn

_Tasks = SimpleQueue[tuple[Any, ...] | None]


@jit
def meet(meeting, turn, threads):
    """Wait until all threads are here; return ``turn + 1``.

    Args:
        meeting: Address of the int64 that they count in.
        turn: How often they met before.
        threads: How many there are; one meets nobody.
    """
    if threads > 1:
        add_at(meeting, 1)
        waited = 0
        while read_at(meeting) < threads * (turn + 1):
            waited += 1
            if waited < PATIENCE:
                pause()
            else:  # more threads than cores: whoever is waited for may not be running
                give_way()
    return turn + 1


class Crew:
    """Call one function on several threads at once, each with its own number.

    Args:
        threads: How many, the calling one among them.
        make: From the address where threads meet to the function, called as
            ``function(thread, turn, *arguments)``; it returns how often all have met then, and must
            not refer to the crew.
    """

    def __init__(self, threads: int, make: Callable[[int], Callable[..., int]]) -> None:
        self._threads = threads
        self._meeting = empty((8,), np.int64)  # a cache line of its own
        self._function = make(self._meeting.ctypes.data)
        self._others: list[tuple[Thread, _Tasks]] = []
        self._failures: list[BaseException] = []
        self._turn = 0
        self._process = 0

    def __call__(self, *arguments: Any) -> None:
        """Return when all threads have met for the last time.

        Raises:
            RuntimeError: One of the other threads failed; its error is the cause.
        """
        if self._process != os.getpid():  # at first, and in a fork, which has none of the threads
            self._gather()
        try:
            for _, tasks in self._others:
                tasks.put((self._turn, *arguments))
            self._turn = self._function(0, self._turn, *arguments)
        except BaseException:
            self._dismiss()
            raise
        if self._failures:
            self._dismiss()
            raise RuntimeError("a thread of a compiled call failed") from self._failures[0]

    def _gather(self) -> None:
        self._turn, self._meeting[0] = 0, 0
        self._others, self._failures = [], []
        for thread in range(1, self._threads):
            tasks: _Tasks = SimpleQueue()
            serving = (tasks, self._function, thread, self._meeting, self._failures)
            other = Thread(target=_serve, args=serving, daemon=True)
            other.start()
            weakref.finalize(self, tasks.put, None)
            self._others.append((other, tasks))
        self._process = os.getpid()

    def _dismiss(self) -> None:
        """Let whoever waits go on to the end of its call, and end; the next call begins anew."""
        self._process, self._meeting[0] = 0, _ABANDONED
        for other, tasks in self._others:
            tasks.put(None)
            other.join()


def _serve(tasks, function, thread, meeting, failures):
    while (arguments := tasks.get()) is not None:
        try:
            function(thread, *arguments)
        except BaseException as error:
            failures.append(error)
            meeting[0] = _ABANDONED  # nobody is to wait for this thread
