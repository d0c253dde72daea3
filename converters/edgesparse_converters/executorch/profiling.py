"""Where the time of a program goes: latency by operator, from the runtime's own event tracer.

Runtimes from 1.5 on record every kernel call and every operator inside XNNPACK; earlier wheels were
built without the tracer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse.executing import OperatorTime, Timing
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.quiet import quiet
from edgesparse_converters.executorch.session import run_child, store_inputs


def profile(
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    method: str = "forward",
    runs: int = 10,
    timeout: float = 600.0,
) -> tuple[OperatorTime, ...]:
    """Run a method ``runs`` times and return its operators, the slowest first.

    Args:
        path: The ``.pte``.
        inputs: Arrays by input name.
        method: The method to run.
        runs: How often.
        timeout: Seconds after which it is stopped.

    Raises:
        SourceError: The file is damaged, or the runtime failed.
        NoTracer: The runtime records no events.
        UsageError: Inputs that the program does not have.
    """
    program = read_program(path)
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        store_inputs(program, method, [inputs], Path(folder))
        run_child(["profile", str(path), method, folder, str(runs)], path, timeout)
        events = Path(folder) / "events.etdp"
        if not events.exists():
            raise NoTracer("this ExecuTorch runtime was built without its event tracer")
        return _read(events)


def measure(
    path: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    what: str,
    runs: int,
    threads: int | None,
    timeout: float = 3600.0,
) -> Timing:
    """Time loading the program and ``runs`` runs of ``forward``, and where they go.

    Args:
        path: The ``.pte``.
        inputs: Arrays by input name.
        what: What one run is, for people.
        runs: How many runs to time, after one that is not.
        threads: How many threads; None leaves it to the runtime.
        timeout: Seconds after which it is stopped.

    Raises:
        SourceError: The file is damaged, or the runtime failed.
    """
    program = read_program(path)
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        store_inputs(program, "forward", [inputs], Path(folder))
        arguments = ["time", str(path), "forward", folder, str(runs), str(threads or 0)]
        run_child(arguments, path, timeout)
        load, *times = np.load(Path(folder) / "times.npy", allow_pickle=False).tolist()
    try:
        operators = profile(path, inputs, runs=min(runs, 10))
    except NoTracer:
        operators = ()
    return Timing(
        what=what, load=load, runs=runs, median=float(np.median(times)), fastest=min(times),
        operators=operators,
    )  # fmt: skip


class NoTracer(SourceError):
    """The runtime was built without its event tracer."""


def _read(events: Path) -> tuple[OperatorTime, ...]:
    with quiet():
        from executorch.devtools import Inspector

        inspector = Inspector(etdump_path=str(events))
    found: dict[str, list[float]] = {}
    for block in inspector.event_blocks:
        if block.name != "Execute":
            continue
        for event in block.events:
            if event.perf_data is not None and event.name not in _WHOLES:
                name = event.name.removeprefix("native_call_")
                found.setdefault(name, []).append(float(np.median(event.perf_data.raw)))
    times = [
        OperatorTime(name=name, calls=len(values), milliseconds=sum(values))
        for name, values in found.items()
    ]
    return tuple(sorted(times, key=lambda time: -time.milliseconds))


# Events that contain others.
_WHOLES = ("Method::execute", "OPERATOR_CALL", "DELEGATE_CALL")
