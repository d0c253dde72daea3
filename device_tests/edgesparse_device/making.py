"""Make a bundle: the artifact, inputs for it, and what the packed model makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgesparse.budget import Budget
from edgesparse.errors import SourceError, UsageError
from edgesparse.store.arrays import read_arrays
from edgesparse_device.bundle import Bundle, Case, open_bundle, write_manifest
from edgesparse_device.folder import new_folder
from edgesparse_device.machine import versions
from edgesparse_device.tensors import TensorSpec, write_raw

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

Arrays = Mapping[str, NDArray[Any]]
# 8-bit activations, which most on-device kernels compute with, are within this of float ones.
TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class CaseArrays:
    """One case before it is written: inputs in the artifact's order, and reference outputs."""

    name: str
    inputs: Arrays
    outputs: Arrays


def write_bundle(
    out: Path,
    artifact: Path,
    cases: Sequence[CaseArrays],
    *,
    target: str,
    task: str = "generic",
    tolerance: float = TOLERANCE,
    budget: Budget | None = None,
    force: bool = False,
) -> Bundle:
    """Write a bundle of an artifact and finished cases.

    Args:
        out: The folder to write.
        artifact: A file, or a package folder; copied.
        cases: At least one, names distinct.
        target: Exporter that wrote the artifact.
        task: ``causal-lm`` or ``generic``.
        tolerance: Largest relative error of an output that counts as right.
        budget: What the artifact may cost.
        force: Replace what is at ``out``.

    Raises:
        OutputExists: ``out`` exists and ``force`` is not set.
        SourceError: No case, names that repeat, or arrays a device cannot take.
    """
    if not tolerance > 0:
        raise UsageError(f"tolerance {tolerance}: expected a relative error above 0")
    with new_folder(out, force=force) as folder:
        if artifact.is_dir():
            shutil.copytree(artifact, folder / artifact.name)
        else:
            shutil.copyfile(artifact, folder / artifact.name)
        bundle = Bundle(
            path=folder,
            artifact=artifact.name,
            target=target,
            sha256="",
            nbytes=0,
            task=task,
            tolerance=tolerance,
            budget=budget or Budget(),
            cases=tuple(_case(case) for case in cases),
            tool_versions=versions("edgesparse", "torch", "executorch", "coremltools"),
        )
        for index, case in enumerate(cases):
            bundle.input_path(index, 0).parent.mkdir(parents=True)
            for position, array in enumerate(case.inputs.values()):
                write_raw(bundle.input_path(index, position), array)
            for position, array in enumerate(case.outputs.values()):
                write_raw(bundle.reference_path(index, position), array)
        write_manifest(bundle)
    return open_bundle(out)


def make_bundle(
    out: Path,
    artifact: Path,
    compressed: CompressedModel,
    *,
    inputs: Mapping[str, Arrays] | None = None,
    text: str | None = None,
    count: int = 3,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    budget: Budget | None = None,
    force: bool = False,
) -> Bundle:
    """Write a bundle with references computed by the packed model.

    Args:
        out: The folder to write.
        artifact: What was exported from ``compressed``.
        compressed: The packed model.
        inputs: Inputs of every case, by the case's and the input's name.
        text: Text a language model's cases are cut from, instead of ``inputs``.
        count: Cases to cut or, with neither inputs nor text, to draw at random.
        seed: Of the random inputs.
        tolerance: Largest relative error of an output that counts as right.
        budget: What the artifact may cost; None takes the plan's when it was made for this target.
        force: Replace what is at ``out``.

    Raises:
        UsageError: Inputs the artifact does not have, or weights in a file apart.
        SourceError: No artifact there, or too little text.
    """
    from edgesparse.exporting import inspect, target_of
    from edgesparse_device.reference import draw_inputs, input_shapes, references, text_inputs

    target = target_of(artifact)
    if target == "executorch":
        _refuse_weights_apart(artifact)
    shapes = input_shapes(inspect(artifact))
    captured = compressed.captured
    if inputs is None and text is not None:
        inputs = text_inputs(captured, shapes, text, count=count)
    elif inputs is None:
        inputs = draw_inputs(captured, shapes, count=count, seed=seed)
    for name, arrays in inputs.items():
        if set(arrays) != set(shapes):
            raise UsageError(f"case {name}: inputs {sorted(arrays)}; expected {', '.join(shapes)}")
    ordered = {n: {key: arrays[key] for key in shapes} for n, arrays in inputs.items()}
    outputs = references(compressed, list(ordered.values()))
    cases = [
        CaseArrays(name=name, inputs=arrays, outputs=found)
        for (name, arrays), found in zip(ordered.items(), outputs, strict=True)
    ]
    planned = compressed.plan.budget if compressed.plan.target == target else Budget()
    return write_bundle(
        out,
        artifact,
        cases,
        target=target,
        task=captured.task,
        tolerance=tolerance,
        budget=budget or planned,
        force=force,
    )


def read_inputs(paths: Sequence[Path]) -> dict[str, Arrays]:
    """Return the inputs in safetensors or npz files; the case has the file's name.

    Raises:
        SourceError: A file that cannot be read, or is neither.
    """
    return {path.stem: _read_arrays(path) for path in paths}


def _read_arrays(path: Path) -> Arrays:
    try:
        if path.suffix == ".npz":
            return read_arrays(path)
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(path))
    except Exception as error:  # safetensors raises an exception class of its own, zipfile another
        raise SourceError(f"{path}: cannot be read: {error}") from None
    raise SourceError(f"{path}: inputs are .npz or .safetensors files")


def _refuse_weights_apart(artifact: Path) -> None:
    from edgesparse_converters.executorch.program import read_program

    if read_program(artifact).apart_path is not None:
        raise UsageError(
            f"{artifact.name} keeps its weights in a file apart, and a bundle holds one file; "
            "export it without apart"
        )


def _case(case: CaseArrays) -> Case:
    return Case(
        name=case.name,
        inputs=tuple(TensorSpec.of(name, array) for name, array in case.inputs.items()),
        outputs=tuple(TensorSpec.of(name, array) for name, array in case.outputs.items()),
    )
