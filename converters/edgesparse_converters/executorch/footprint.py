"""The memory a program really takes: its peak resident set above that of the runtime without one.

Measured in a process of its own that has the runtime and our operators loaded, runs the method
twice on zeros, and looks at what the operating system says. Pages of the file that were read count,
as they do in the prediction.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from edgesparse_converters.executorch.program import read_program

_CHILD = "edgesparse_converters.executorch.footprint"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_peak(path: Path, method: str = "forward", *, timeout: float = 600.0) -> int | None:
    """Return the bytes of a program's peak resident set; None where the system does not say.

    Args:
        path: The ``.pte``.
        method: The method to run.
        timeout: Seconds after which the process is stopped.

    Raises:
        SourceError: A damaged file, or one the runtime refuses.
        MissingTool: The program has packed operators, and no compiler is here to build them.
    """
    from edgesparse_converters.executorch.session import run_child, store_inputs, zeros

    if not (_STATUS.exists() and _CLEAR.exists()):
        return None
    program = read_program(path)
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        store_inputs(program, method, [zeros(program, method)], Path(folder))
        run_child([str(path), method, folder], path, timeout, module=_CHILD)
        return int((Path(folder) / "peak").read_text(encoding="ascii"))


def _measure(path: str, method: str, folder: str) -> None:
    """Run the method in this process and write what it took."""
    import torch
    from executorch.runtime import Runtime, Verification

    from edgesparse_converters.executorch.loading import register_kernels

    runtime, parsed = Runtime.get(), read_program(Path(path))
    options = {} if parsed.apart_path is None else {"data_path": parsed.apart_path}
    with np.load(Path(folder) / "in0.npz", allow_pickle=False) as stored:
        inputs = [torch.from_numpy(stored[key]) for key in stored.files]
    register_kernels(parsed.operators)
    before = _resident("VmRSS")
    _CLEAR.write_text("5", encoding="ascii")  # forget the peak of the imports
    program = runtime.load_program(path, verification=Verification.InternalConsistency, **options)
    loaded = program.load_method(method)
    for _ in range(2):
        loaded.execute(inputs)
    peak = _resident("VmHWM") - before
    (Path(folder) / "peak").write_text(str(peak), encoding="ascii")


def _resident(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    _measure(*sys.argv[1:])
