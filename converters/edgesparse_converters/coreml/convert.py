"""coremltools, called once: a traced module to a package on disk, several packages to one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edgesparse.errors import ExportError, Unsupported
from edgesparse_converters.coreml import compat, frontend
from edgesparse_converters.coreml.shapes import Shapes

METADATA_KEY = "edgesparse"


def trace(
    module: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    *,
    fused_attention: bool,
    open_sizes: dict[str, dict[int, Any] | None] | None = None,
) -> torch.export.ExportedProgram:
    """Return the module as a graph coremltools can translate.

    Args:
        module: The module; takes ``inputs`` by name.
        inputs: Example inputs.
        fused_attention: See ``frontend.lower``.
        open_sizes: ``torch.export.Dim`` of each open axis, by input and axis.

    Raises:
        Unsupported: torch cannot trace it, or operators have no translation.
    """
    compat.apply()
    with compat.quiet():
        try:
            program = torch.export.export(
                module, (), inputs, dynamic_shapes=open_sizes, strict=False
            )
        except Exception as error:
            # torch.export raises whatever the traced code or its own stages raise.
            raise Unsupported(
                f"torch.export cannot trace the model: {type(error).__name__}: {_line(error)}"
            ) from error
        return frontend.lower(program, fused_attention=fused_attention)


def convert(program: torch.export.ExportedProgram, outputs: tuple[str, ...], *, system: str) -> Any:
    """Return coremltools' model of a traced program, its outputs named.

    Raises:
        ExportError: coremltools fails.
    """
    import coremltools as ct

    with compat.quiet():
        try:
            return ct.convert(
                program,
                outputs=[ct.TensorType(name=name) for name in outputs],
                minimum_deployment_target=getattr(ct.target, system),
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=Precise()),
                skip_model_load=True,
            )
        except Exception as error:
            # coremltools raises bare ValueError, KeyError, AssertionError, … with its reasons.
            raise ExportError(
                f"coremltools cannot convert the model: {type(error).__name__}: {_line(error)}"
            ) from error


def enumerate_shapes(model: Any, shapes: Shapes) -> Any:
    """Return coremltools' model with inputs that have these shapes and no others."""
    import coremltools as ct

    spec = model.get_spec()
    for described in spec.description.input:
        if described.name not in shapes:
            continue
        array = described.type.multiArrayType
        array.ClearField("shape")
        array.ClearField("shapeRange")
        array.shape.extend(shapes[described.name][0])
        for shape in shapes[described.name]:
            array.enumeratedShapes.shapes.add().shape.extend(shape)
    return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def save(model: Any, path: Path, record: Mapping[str, Any]) -> None:
    """Write coremltools' model, with ``record`` in its metadata."""
    text = json.dumps({"version": version("edgesparse"), **record})
    model.user_defined_metadata[METADATA_KEY] = text
    with compat.quiet():
        model.save(str(path))
    # A map from operators to torch nodes for ExecuTorch's debugger, as large as the program.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def combine(parts: Mapping[str, Path], path: Path, record: Mapping[str, Any]) -> None:
    """Write one package whose functions are those of ``parts``, constants shared."""
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, part in parts.items():
        descriptor.add_function(str(part), "main", name)
    descriptor.default_function_name = next(iter(parts))
    whole = path.with_name(f"whole-{path.name}")
    with compat.quiet():
        ct.utils.save_multifunction(descriptor, str(whole))
        save(ct.models.MLModel(str(whole), skip_model_load=True), path, record)
    shutil.rmtree(whole)


class Precise:
    """Which operations compute in float16: all but what leads to a sine or cosine.

    The angle of a rotary embedding is a position times a frequency; in float16 it would be off by
    a quarter of a radian at position 400.
    """

    def __init__(self) -> None:
        self._kept: dict[int, set[int]] = {}

    def __call__(self, operation: Any) -> bool:
        """Return whether coremltools may narrow the operation."""
        block = operation.enclosing_block
        if id(block) not in self._kept:
            self._kept[id(block)] = _leading_to_angles(block)
        return id(operation) not in self._kept[id(block)]


def _leading_to_angles(block: Any) -> set[int]:
    kept: set[int] = set()
    for operation in reversed(list(block.operations)):
        children = (child for output in operation.outputs for child in output.child_ops)
        if operation.op_type in ("sin", "cos") or any(id(child) in kept for child in children):
            kept.add(id(operation))
    return kept


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else "no reason given"
