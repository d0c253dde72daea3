"""The proof: a package's weights read back bit for bit, and the package executed on this host.

The reference is the packed model in torch, in float32. The package is executed twice: in float32,
where it must agree to ``FLOAT32_TOLERANCE`` (what differs is what the file holds in float16: kept
weights and folded constants), and with every value rounded to the float16 the file declares, where
``FLOAT16_TOLERANCE`` is a cosine of 0.9999.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.runtime.forward import token_key
from edgesparse.runtime.modules import build_decoded
from edgesparse.verdict import (
    LayerCheck,
    OutputCheck,
    Verdict,
    compare_output,
    describe_inputs,
    worst_outputs,
)
from edgesparse_converters.coreml import interface
from edgesparse_converters.coreml.comparison import compare
from edgesparse_converters.coreml.execute import Executor, Precision
from edgesparse_converters.coreml.forms import CONST, SPARSE_TO_DENSE
from edgesparse_converters.coreml.language import LanguageModel
from edgesparse_converters.coreml.package import Package
from edgesparse_converters.coreml.readback import program_names, read_weight

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel
    from edgesparse_converters.coreml.program import Program, TensorType

Arrays = Mapping[str, NDArray[Any]]

MAX_SEQUENCE = 80
SHORT = 7
"""Size of an open axis: odd, so that nothing fits it by chance."""
VALUES = ((CONST,), (SPARSE_TO_DENSE,))
"""Operations that hold values rather than codes."""
WIDEST = 1 << 10
"""How far above its lower bound an open size is tried."""
FLOAT32_TOLERANCE = 1e-3
FLOAT16_TOLERANCE = float(np.sqrt(2 * 1e-4))


def validate(
    path: Path,
    compressed: CompressedModel,
    *,
    inputs: Sequence[Arrays] | None = None,
    calls: int = 2,
    seed: int = 0,
) -> Verdict:
    """Compare a package with the packed model it was made from.

    Args:
        path: The ``.mlpackage``.
        compressed: The packed model.
        inputs: What to run it on, by name; None draws ``calls`` random inputs.
        calls: How many random inputs.
        seed: Of the random inputs.

    Raises:
        SourceError: Not a package edgesparse wrote, damaged, or of another model.
        Unsupported: It has operators the host executor does not know.
    """
    package = Package(path)
    layers = check_layers(package, compressed)
    if has_state(package):
        drawn, outputs = _check_sequence(package, compressed, seed)
    else:
        drawn = inputs or draw_inputs(
            Executor(package).inputs, compressed, calls=calls, seed=seed,
            program=package.program,
        )  # fmt: skip
        references = reference_outputs(compressed, drawn)
        outputs = _check(package, drawn, references, "float32", FLOAT32_TOLERANCE)
        outputs += _check(package, drawn, references, "float16", FLOAT16_TOLERANCE)
    return Verdict(
        path=path,
        target="coreml",
        layers=layers,
        outputs=tuple(outputs),
        runtime="edgesparse host executor for Core ML programs",
        notes=(
            f"{describe_inputs(len(drawn), given=bool(inputs), seed=seed)}; executed on this host, "
            "not by Core ML: what a device's own kernels round is not seen here",
        ),
    )


def has_state(package: Package) -> bool:
    """Whether a function of the package keeps state between calls."""
    functions = package.program.functions.values()
    return any(named.type.is_state for function in functions for named in function.inputs)


def _check_sequence(
    package: Package, compressed: CompressedModel, seed: int
) -> tuple[Sequence[Arrays], list[OutputCheck]]:
    """Feed tokens piece by piece; compare with the packed model, which sees them all at once."""
    checks = []
    model = LanguageModel(package)
    vocabulary = int(compressed.captured.config.get("vocab_size", 2))
    length = min(model.context, MAX_SEQUENCE)
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (1, length))
    inputs = [{token_key(compressed.captured): tokens}]
    expected = reference_outputs(compressed, inputs)[0]["logits"][0]
    half = LanguageModel(package, precision="float16")
    for name, feeder, tolerance in (
        ("float32", model, FLOAT32_TOLERANCE),
        ("float16", half, FLOAT16_TOLERANCE),
    ):
        found = np.concatenate([feeder.feed(tokens[0, :-2].tolist())]
                               + [feeder.feed([int(t)]) for t in tokens[0, -2:]])  # fmt: skip
        checks.append(compare_output(f"logits ({name})", found, expected, tolerance=tolerance))
    return inputs, checks


def check_layers(package: Package, compressed: CompressedModel) -> tuple[LayerCheck, ...]:
    """Compare mask, codes and scales of every packed tensor with the file's, in every function.

    A mask, code or scale that differs where it changes no weight counts as infinitely wrong, but
    for weights of codes that were written as values, which have no codes.
    """
    checks = []
    for name, value in program_names(package, compressed.packed).items():
        codes, error = compressed.packed[name].codes, 0.0
        for function in package.program.functions:
            weight = read_weight(package, value, function)
            difference = compare(weight, codes)
            as_values = weight.operations in VALUES and codes.bits < 16
            wrong = difference.mask and weight.mask is not None if as_values else difference.any
            silent = wrong and difference.max_abs == 0
            error = max(error, np.inf if silent else difference.max_abs)
        lowering = " + ".join(weight.operations)
        checks.append(LayerCheck(name=name, lowering=lowering, max_abs_error=error))
    return tuple(checks)


def draw_inputs(
    types: Mapping[str, TensorType],
    compressed: CompressedModel,
    *,
    calls: int,
    seed: int,
    program: Program | None = None,
) -> list[dict[str, NDArray[Any]]]:
    """Return random inputs: normal floats, tokens of the vocabulary, other integers as traced.

    Inputs with a list of shapes take one after the other; open sizes are odd and small, or random
    between the bounds that ``program`` says.
    """
    generator = np.random.default_rng(seed)
    examples = compressed.captured.example_inputs
    tokens = token_key(compressed.captured) if compressed.captured.task == "causal-lm" else ""
    vocabulary = int(compressed.captured.config.get("vocab_size", 0))
    drawn = []
    for turn in range(calls):
        call: dict[str, NDArray[Any]] = {}
        for name, kind in types.items():
            example = examples.get(name)
            shape = tuple(SHORT if size is None else size for size in kind.shape)
            if program is not None and name in program.shapes:
                shape = program.shapes[name][turn % len(program.shapes[name])]
            elif program is not None and name in program.ranges:
                shape = tuple(_between(*bounds, turn) for bounds in program.ranges[name])
            if kind.dtype.startswith("float"):
                call[name] = generator.standard_normal(shape).astype(np.float32)
            elif name == tokens or (name == "input_ids" and vocabulary):
                limit = vocabulary or int(examples[name].max()) + 1
                call[name] = generator.integers(0, limit, shape).astype(np.int32)
            elif isinstance(example, Tensor) and tuple(example.shape) == shape:
                call[name] = example.numpy().astype(np.int32)
            else:
                call[name] = np.ones(shape, np.int32)
        drawn.append(call)
    return drawn


def _between(low: int, high: int, turn: int) -> int:
    """Return a size between two bounds: the same for the same bounds, as equal sizes have to be."""
    if not 0 <= low <= high:
        return max(low, SHORT)
    return low + min(high - low, WIDEST) * (1 + turn % 3) // 3


def reference_outputs(
    compressed: CompressedModel, inputs: Sequence[Arrays]
) -> list[dict[str, NDArray[np.float32]]]:
    """Return the packed model's outputs in float32, under the names the package gives them."""
    module = interface.wrap(build_decoded(compressed), compressed.captured)
    examples = compressed.captured.example_inputs
    outputs = []
    for call in inputs:
        tensors = {
            name: torch.from_numpy(np.asarray(value)).to(examples[name].dtype)
            for name, value in call.items()
        }
        named = interface.outputs_by_name(module, tensors)
        outputs.append({name: value.float().numpy() for name, value in named.items()})
    return outputs


def _check(
    package: Package,
    inputs: Sequence[Arrays],
    references: Sequence[Arrays],
    precision: Precision,
    tolerance: float,
) -> list[OutputCheck]:
    """Return the worst check of each output over all inputs."""
    executor = Executor(package, precision=precision)
    checks = worst_outputs(map(executor.run, inputs), references, tolerance=tolerance)
    return [replace(check, name=f"{check.name} ({precision})") for check in checks]
