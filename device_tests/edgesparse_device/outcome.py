"""What the end of a runner means: its exit code, signal and complaints in one sentence."""

from __future__ import annotations

import re
import signal

from edgesparse.errors import DeviceError
from edgesparse_device.process import Finished, signal_name

# The exit codes of runner/job.h.
LIBRARY, PROGRAM, METHOD, INPUT, EXECUTE, OUTPUT = 10, 11, 12, 13, 14, 15
_STEPS = {
    2: "the runner was called wrongly",
    LIBRARY: "the kernel library cannot be loaded",
    PROGRAM: "the program cannot be loaded",
    METHOD: "the method cannot be loaded",
    INPUT: "the inputs do not fit the program",
    EXECUTE: "the execution failed",
    OUTPUT: "the outputs cannot be written",
}
_MISSING = re.compile(r"Missing operator: \[\d+\] (\S+)")
_WRONG_ABI = re.compile(
    r"[Ee]xec format error|not executable: .*ELF|wrong ELF class|cannot execute"
)


class DeviceLost(DeviceError):
    """The device went away: what was not run yet cannot be run now."""


def require_fine(finished: Finished, *, limit: float, output_is_whole: bool) -> None:
    """Return if the runner did its work.

    Args:
        finished: How it ended; exit codes above 128 are signals, as shells report them.
        limit: The seconds it was given.
        output_is_whole: Whether it left a result.

    Raises:
        DeviceError: It did not; the message names the step, the signal or the limit.
    """
    code = finished.returncode
    if finished.timed_out or _signal(code) == signal.SIGALRM:
        raise DeviceError(f"still running after {limit:g} s and was stopped; --limit allows more")
    missing = sorted(set(_MISSING.findall(finished.stderr)))
    if code and missing:
        raise DeviceError(
            f"the device's runtime has no kernel for {', '.join(missing)}; link the library that "
            "has it, or export without it"
        )
    if number := _signal(code):
        raise DeviceError(f"the runner crashed with {signal_name(number)}{_said(finished)}")
    if _WRONG_ABI.search(finished.stderr):
        raise DeviceError(
            f"the runner is for another processor than the device has{_said(finished)}"
        )
    if "No space left on device" in finished.stderr:
        raise DeviceError(f"the device's disk is full{_said(finished)}")
    if code:
        step = _STEPS.get(code, f"the runner ended with exit code {code}")
        raise DeviceError(f"{step}{_said(finished)}")
    if not output_is_whole:
        raise DeviceError(f"the runner ended without a result{_said(finished)}")


def _signal(code: int) -> int:
    if code < 0:
        return -code
    return code - 128 if 128 < code < 128 + signal.NSIG else 0


def _said(finished: Finished) -> str:
    """Return the last telling line, after a colon."""
    lines = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("error:")] or [
        line for line in lines if "cpuinfo" not in line
    ]
    return f": {telling[-1].removeprefix('error:').strip()[:300]}" if telling else ""
