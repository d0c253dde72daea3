"""Which processor Core ML would run each operation on: its compute plan, counted. macOS only.

Nothing here has been run on a Mac by us; the counting is tested on structures of coremltools' own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROCESSORS = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}


def placement(package: Path, folder: Path) -> dict[str, int]:
    """Return how many operations of a package each processor is preferred for, most first.

    Args:
        package: The ``.mlpackage``.
        folder: Where the compiled model may go.
    """
    from coremltools.models.compute_plan import MLComputePlan
    from coremltools.models.utils import compile_model

    compiled = compile_model(str(package), str(folder / f"{package.stem}.mlmodelc"))
    return count(MLComputePlan.load_from_path(compiled))


def count(plan: Any) -> dict[str, int]:
    """Count the operations of a ``coremltools.models.compute_plan.MLComputePlan``.

    Constants run nowhere and are left out; operations of nested blocks count too.
    """
    found: Counter[str] = Counter()
    for function in plan.model_structure.program.functions.values():
        for operation in _operations(function.block):
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:
                kind = type(usage.preferred_compute_device).__name__
                found[PROCESSORS.get(kind, kind)] += 1
    return dict(found.most_common())


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)
