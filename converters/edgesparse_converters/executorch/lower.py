"""A module to the bytes of a ``.pte``: torch.export, XNNPACK's partitioner, memory planning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgesparse.errors import Unsupported
from edgesparse_converters.executorch.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

ALIGNMENT = 64  # bytes, as the buffers of the packed formats have it


def trace(module: nn.Module, inputs: Mapping[str, Tensor]) -> ExportedProgram:
    """Return the graph of ``module`` on these inputs.

    Raises:
        Unsupported: The module cannot be traced.
    """
    with torch.no_grad(), quiet():
        try:
            return torch.export.export(module, (), dict(inputs), strict=False)
        except Exception as error:  # torch.export raises whatever the model's own code raises
            raise Unsupported(
                f"torch.export cannot trace the model: {_first_line(error)}"
            ) from error


def lower(
    programs: Mapping[str, ExportedProgram],
    constants: Mapping[str, Any],
    *,
    apart: Path | None = None,
) -> bytes:
    """Return a ``.pte`` of these methods.

    Args:
        programs: Traced graphs by method name.
        constants: Values by name, which become methods without inputs.
        apart: The tensor file to write what the kernels read as weights to; None keeps it in the
            program. What XNNPACK repacks stays there.

    Raises:
        Unsupported: An operator the runtime has no kernel for, or no weights to keep apart.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

        from edgesparse_converters.executorch.planning import InPlacePlanning

    # XNNPACK gets whatever it has kernels for: leaving it the matrix products alone lowers a
    # quarter faster and makes a token of the bundled model 1.8 times slower.
    with torch.no_grad(), quiet():
        try:
            edge = to_edge_transform_and_lower(
                dict(programs),
                partitioner={name: [XnnpackPartitioner()] for name in programs},
                constant_methods=dict(constants),
            )
            planned = edge.to_executorch(
                ExecutorchBackendConfig(
                    memory_planning_pass=InPlacePlanning(),
                    # Caches are written in place; else every layer copies its whole cache twice
                    # a token, through memory of its own.
                    run_reinplace_pass=True,
                    # Packed codes are read 64 bytes at a time, which must not cross cache lines.
                    constant_tensor_alignment=ALIGNMENT,
                    segment_alignment=ALIGNMENT,
                    external_constants=False if apart is None else lambda node: "weights",
                )
            )
        except Exception as error:  # the compiler's passes assert and raise freely
            raise Unsupported(f"ExecuTorch cannot lower the model: {_first_line(error)}") from error
    if apart is not None:
        with TemporaryDirectory(dir=apart.parent) as folder:
            planned.write_tensor_data_to_file(folder)
            written = list(Path(folder).iterdir())
            if not written:
                raise Unsupported("all weights are XNNPACK's, which keeps them in the program")
            written[0].rename(apart)
    return bytes(planned.buffer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
