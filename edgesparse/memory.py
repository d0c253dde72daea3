"""How much memory this process holds, and how much it can still get."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

from edgesparse.budget import format_size
from edgesparse.errors import UsageError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def require_memory(nbytes: int, what: str, remedy: str) -> None:
    """Check that ``nbytes`` more can be had.

    Args:
        nbytes: The least that is needed for sure.
        what: It is needed for; begins the message.
        remedy: What to do instead; ends it.

    Raises:
        UsageError: They cannot; says how much can.
    """
    available = available_nbytes()
    if nbytes > available:
        raise UsageError(
            f"{what} take {format_size(nbytes)} of memory, and {format_size(available)} can be "
            f"had; {remedy}"
        )


def available_nbytes() -> int:
    """Return the bytes of memory this process can still get; without Linux what the machine has."""
    if not _MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = sum(1024 * int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    return min(free, _left_in_group())


def _left_in_group() -> int:
    """Return what a container leaves, beyond what cannot be dropped: cached files can."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        held = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return sys.maxsize if limit == "max" else max(0, int(limit) - int(held["anon"]))
    except (OSError, KeyError):
        return sys.maxsize


def resident_nbytes() -> int:
    """Return the bytes of memory this process holds; without Linux the most it ever held."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return peak_nbytes()


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library is glibc.

    It keeps holes between what is still used, and with every block of a model they were more.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def peak_nbytes() -> int:
    """Return the most bytes of memory this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
