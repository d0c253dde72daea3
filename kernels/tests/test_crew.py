"""Threads that take a call together: they meet, and one that fails or is interrupted stops none."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import numpy as np
import pytest
from edgesparse_kernels import _jit
from edgesparse_kernels.crew import Crew, meet

pytestmark = pytest.mark.skipif(not _jit.is_enabled(), reason="threads take compiled calls")

ROUNDS = 200


@_jit.jit
def pass_on(meeting, turn, thread, threads, seen, total):
    """Each thread writes in turn what it read of its neighbour: right only if all wait for all."""
    for _ in range(ROUNDS):
        found = seen[(thread + 1) % threads]
        turn = meet(meeting, turn, threads)
        seen[thread] = found + 1
        turn = meet(meeting, turn, threads)
    total[thread] += seen[thread]
    return meet(meeting, turn, threads)


def passing(threads, seen, total):
    def make(meeting):
        return lambda thread, turn: pass_on(meeting, turn, thread, threads, seen, total)

    return make


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_all_wait_for_all(threads):
    """Seven threads are more than the cores of many a machine, and still get on."""
    seen, total = np.zeros(threads, np.int64), np.zeros(threads, np.int64)
    crew = Crew(threads, passing(threads, seen, total))
    for call in range(1, 4):
        crew()
        assert seen.tolist() == [call * ROUNDS] * threads
    assert total.tolist() == [6 * ROUNDS] * threads


def failing(thread_that_fails, error, meetings=3):
    """Every thread meets ``meetings`` times but for one, which fails while it is told to."""
    told = threading.Event()
    told.set()

    def make(meeting):
        def call(thread, turn):
            if thread == thread_that_fails and told.is_set():
                raise error
            for _ in range(meetings):
                turn = meet(meeting, turn, 3)
            return turn

        return call

    return Crew(3, make), told


def test_another_thread_that_fails_is_told_of_and_the_next_call_begins_anew():
    crew, told = failing(2, MemoryError("no room"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a thread of a compiled call failed") as caught:
            crew()
        assert isinstance(caught.value.__cause__, MemoryError)
    told.clear()
    crew()


def test_an_interrupt_before_this_thread_takes_part_leaves_none_waiting():
    before = set(threading.enumerate())
    crew, told = failing(0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        crew()
    assert set(threading.enumerate()) <= before
    told.clear()
    crew()


def test_threads_end_with_their_crew():
    before = set(threading.enumerate())
    crew = Crew(3, passing(3, np.zeros(3, np.int64), np.zeros(3, np.int64)))
    crew()
    others = set(threading.enumerate()) - before
    assert len(others) == 2
    gone = weakref.ref(crew)
    del crew
    gc.collect()
    assert gone() is None
    for other in others:
        other.join(timeout=10)
        assert not other.is_alive(), "it waits for a crew that is no more"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_gets_threads_of_its_own():
    seen, total = np.zeros(2, np.int64), np.zeros(2, np.int64)
    crew = Crew(2, passing(2, seen, total))
    crew()
    child = os.fork()
    if child == 0:
        crew()
        os._exit(0 if seen.tolist() == [2 * ROUNDS] * 2 else 1)
    for _ in range(500):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(child, 9)
    pytest.fail("the fork waits for threads that it does not have")
