"""Where the time of a program goes: latency by operator, from the runtime's own event tracer.

Runtimes from 1.5 on record every kernel call and every operator inside XNNPACK; earlier wheels were
built without the tracer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.quiet import quiet
from edgesparse_converters.executorch.session import run_child, store_inputs


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """What the calls of one operator took in one run of a method.

    Attributes:
        name: The kernel's name; of an operator inside XNNPACK, XNNPACK's own words.
        calls: How often it is called.
        milliseconds: All its calls together, the median over runs.
    """

    name: str
    calls: int
    milliseconds: float


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
        SourceError: The file is damaged, the runtime failed, or it has no tracer.
        UsageError: Inputs that the program does not have.
    """
    program = read_program(path)
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        store_inputs(program, method, [inputs], Path(folder))
        run_child(["profile", str(path), method, folder, str(runs)], path, timeout)
        events = Path(folder) / "events.etdp"
        if not events.exists():
            raise SourceError("this ExecuTorch runtime was built without its event tracer")
        return _read(events)


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
