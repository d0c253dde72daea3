"""The proof: weights read back from the file, and the file executed against the packed model.

The reference is the packed model in torch with the activation arithmetic of each form. What is
left to differ is the order of float additions, 1e-6; but an activation that lies on the edge
between two 8-bit codes may then be rounded the other way, and everything after it differs by as
much as the rounding itself, 1 %. So rows (along the last dimension) are judged one by one: those
that no such tie has reached must agree closely, and there must be some; over all rows the error
must not exceed the distance that 8-bit activations make anyway, which is measured beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError
from edgesparse.exporting import OutputCheck, Verdict
from edgesparse.runtime.modules import build_decoded
from edgesparse_converters.executorch.assemble import build_reference
from edgesparse_converters.executorch.function import Function, function_of
from edgesparse_converters.executorch.lowering import Form, Use
from edgesparse_converters.executorch.metadata import read_metadata
from edgesparse_converters.executorch.program import Program, read_program
from edgesparse_converters.executorch.readback import check_layers
from edgesparse_converters.executorch.session import DTYPES, execute

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

TOLERANCE = 1e-3
# Two roundings that went different ways are twice as far apart as one is from the exact value.
NOISE_FACTOR = 2.0


def validate(
    path: Path,
    compressed: CompressedModel,
    *,
    inputs: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    calls: int = 8,
    seed: int = 0,
) -> Verdict:
    """Compare a written program with the packed model it was made from.

    Args:
        path: The ``.pte``.
        compressed: The packed model.
        inputs: What to run it on, by name; None draws ``calls`` random inputs.
        calls: How many random inputs.
        seed: Of the random inputs.

    Raises:
        SourceError: Not a whole ``.pte``, one that edgesparse did not write, or it fails to run.
    """
    program = read_program(path)
    metadata = read_metadata(program)
    if metadata.forms is None:
        raise SourceError(f"{path}: edgesparse did not write it, so there is nothing to compare")
    uses = _uses(compressed, metadata.forms)
    layers = check_layers(program, "forward", uses, compressed.packed)
    drawn = inputs or draw_inputs(program, compressed, calls=calls, seed=seed)
    results = execute(path, drawn)
    references = _run(
        compressed, build_reference(compressed, uses, activations=metadata.activations), drawn
    )
    exact = _run(compressed, build_decoded(compressed), drawn)
    outputs: list[OutputCheck] = []
    notes: list[str] = [f"{len(drawn)} inputs, {'given' if inputs else f'random, seed {seed}'}"]
    for i, name in enumerate(metadata.outputs):
        checks, note = compare_rows(
            name,
            np.stack([result[name] for result in results]),
            np.stack([reference[i] for reference in references]),
            np.stack([value[i] for value in exact]),
        )
        outputs.extend(checks)
        notes.append(note)
    return Verdict(
        path=path,
        target="executorch",
        layers=layers,
        outputs=tuple(outputs),
        runtime=f"executorch {version('executorch')}",
        notes=tuple(notes),
    )


def compare_rows(
    name: str,
    found: NDArray[np.float32],
    reference: NDArray[np.float32],
    exact: NDArray[np.float32],
) -> tuple[list[OutputCheck], str]:
    """Return the checks of one output, and what to say about it.

    Args:
        name: Name of the output.
        found: What the runtime computed, ``[calls, ..., K]``.
        reference: The packed model with the same activation arithmetic.
        exact: The packed model with float32 activations.
    """
    if found.shape != reference.shape or not np.all(np.isfinite(found)):
        bad = OutputCheck(
            name=name, max_abs_error=np.inf, relative_error=np.inf, tolerance=TOLERANCE
        )
        return [bad], f"{name}: shape {found.shape}, expected {reference.shape} and finite values"
    width = reference.shape[-1] if reference.ndim > 1 else 1
    rows = [array.reshape(-1, width).astype(np.float64) for array in (found, reference, exact)]
    errors = _relative(rows[0], rows[1], axis=1)
    same = errors <= TOLERANCE
    if not same.any():
        same = errors == errors.min()
    noise = float(_relative(rows[1], rows[2]))
    checks = [
        _check(name, rows[0][same], rows[1][same], TOLERANCE),
        _check(f"{name}, all rows", rows[0], rows[1], max(TOLERANCE, NOISE_FACTOR * noise)),
    ]
    return checks, (
        f"{name}: {int(same.sum())} of {len(same)} rows untouched by a rounding tie; the packed "
        f"model with these activations is {noise:.1e} from itself with float32 activations, the "
        f"file {float(_relative(rows[0], rows[2])):.1e}"
    )


def _check(
    name: str, found: NDArray[np.float64], reference: NDArray[np.float64], tolerance: float
) -> OutputCheck:
    return OutputCheck(
        name=name,
        max_abs_error=float(np.abs(found - reference).max(initial=0.0)),
        relative_error=float(_relative(found, reference)),
        tolerance=tolerance,
    )


def _relative(
    found: NDArray[np.float64], reference: NDArray[np.float64], axis: int | None = None
) -> NDArray[np.float64]:
    norm = np.linalg.norm(reference, axis=axis)
    return np.asarray(np.linalg.norm(found - reference, axis=axis) / np.where(norm > 0, norm, 1.0))


def draw_inputs(
    program: Program, compressed: CompressedModel, *, calls: int, seed: int
) -> list[dict[str, NDArray[Any]]]:
    """Return random inputs of the program's shapes: normal floats, integers of the example's range.

    The first is the example itself where its shape is the program's.
    """
    metadata = read_metadata(program)
    plan = program.methods["forward"]
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(calls):
        call = {}
        for name, index in zip(metadata.inputs, plan["inputs"], strict=True):
            value = plan["values"][index]["val"]
            dtype = DTYPES[value["scalar_type"]]
            example = compressed.captured.example_inputs.get(name)
            limit = _integer_limit(compressed, example)
            if np.issubdtype(dtype, np.floating):
                call[name] = generator.standard_normal(value["sizes"]).astype(dtype)
            else:
                call[name] = generator.integers(0, limit, value["sizes"]).astype(dtype)
        drawn.append(call)
    return drawn


def _integer_limit(compressed: CompressedModel, example: object) -> int:
    """Return the end of the range of an integer input: the vocabulary, or what the example has."""
    if compressed.captured.task == "causal-lm":
        vocabulary = compressed.captured.config.get("vocab_size")
        if isinstance(vocabulary, int):
            return vocabulary
    if isinstance(example, Tensor) and example.numel():
        return int(example.max()) + 1
    return 2


def _run(
    compressed: CompressedModel,
    model: torch.nn.Module,
    inputs: Sequence[Mapping[str, NDArray[Any]]],
) -> list[list[NDArray[np.float32]]]:
    """Run a torch module on every input."""
    tensors = [{k: torch.from_numpy(v.copy()) for k, v in call.items()} for call in inputs]
    function: Function = function_of(compressed.captured, model, tensors[0])
    with torch.no_grad():
        return [[value.numpy() for value in function(**call)] for call in tensors]


def _uses(compressed: CompressedModel, forms: Mapping[str, Form]) -> tuple[Use, ...]:
    """Return the uses as the file says they were written.

    Raises:
        SourceError: The file was made from another model.
    """
    from edgesparse_converters.executorch.lowering import plan_uses

    planned = plan_uses(compressed, compressed.captured.skeleton())
    if {use.name for use in planned} != set(forms):
        raise SourceError("the program was made from another model: its packed weights differ")
    return tuple(
        Use(
            tensor=use.tensor, module=use.module, attribute=use.attribute, kind=use.kind,
            form=forms[use.name],
        )
        for use in planned
    )  # fmt: skip
