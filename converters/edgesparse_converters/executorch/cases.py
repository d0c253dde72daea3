"""Inputs to try a program on, and what the packed model makes of them.

A bundled program beside a ``.pte`` keeps such cases: ``forward`` on random inputs, or, where there
is a cache, ``prefill`` from its beginning. They are run and judged like any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesparse.errors import SourceError, UsageError
from edgesparse_converters.executorch.assemble import build_reference
from edgesparse_converters.executorch.bundled import SUFFIX, Case, read_bundled, write_bundled
from edgesparse_converters.executorch.caching import use_rounded_attention
from edgesparse_converters.executorch.function import Function, function_of
from edgesparse_converters.executorch.metadata import read_metadata
from edgesparse_converters.executorch.program import Program
from edgesparse_converters.executorch.rows import compare_rows
from edgesparse_converters.executorch.session import dtype_of, execute

if TYPE_CHECKING:
    from edgesparse.exporting import OutputCheck
    from edgesparse.model import CompressedModel
    from edgesparse_converters.executorch.lowering import Use


def bundle_cases(
    program: Program, compressed: CompressedModel, uses: Iterable[Use], *, count: int
) -> str:
    """Write the bundled program beside ``program``; return what to say about it.

    Raises:
        UsageError: A count below 1.
    """
    if count < 1:
        raise UsageError(f"cases {count}: begins at 1")
    method, cases = make_cases(program, compressed, uses, count=count)
    path = program.path.with_suffix(SUFFIX)
    write_bundled(path, program.path, method, cases)
    return f"{path.name} beside it holds it with {count} cases of {method}"


def make_cases(
    program: Program, compressed: CompressedModel, uses: Iterable[Use], *, count: int, seed: int = 0
) -> tuple[str, list[Case]]:
    """Return the method to try, and random inputs with what the packed model makes of them.

    Activations are rounded as the program rounds them.
    """
    metadata = read_metadata(program)
    reference = build_reference(compressed, uses, activations=metadata.activations)
    if "prefill" not in program.methods:
        inputs = draw_inputs(program, compressed, calls=count, seed=seed)
        outputs = run_module(compressed, reference, inputs)
        pairs = zip(inputs, outputs, strict=True)
        return "forward", [Case(inputs=tuple(i.values()), outputs=tuple(o)) for i, o in pairs]
    if metadata.cache == "int8":
        use_rounded_attention(reference)
    generator = np.random.default_rng(seed)
    length = program.tensor_sizes("prefill", 0)[1]
    tokens = generator.integers(0, integer_limit(compressed, None), (count, 1, length))
    return "prefill", [
        Case(inputs=(ids, np.zeros(1, np.int64)), outputs=(_logits(reference, ids),))
        for ids in tokens
    ]


def check_cases(
    program: Program, compressed: CompressedModel, exact: torch.nn.Module
) -> list[tuple[list[OutputCheck], str]]:
    """Return the checks of the cases in the bundled program beside ``program``; [] without one.

    Args:
        program: The program, at its place.
        compressed: The packed model.
        exact: It in torch, with float32 activations.

    Raises:
        SourceError: It is damaged, or holds another program.
    """
    path = program.path.with_suffix(SUFFIX)
    if not path.exists():
        return []
    bundled = read_bundled(path)
    if bundled.program != program.data:
        raise SourceError(
            f"{path} holds another program than {program.path.name}; export both again, or remove "
            "the one that is old"
        )
    names = read_metadata(program)
    judged = []
    for method, cases in bundled.cases.items():
        inputs = [dict(zip(names.inputs, case.inputs, strict=False)) for case in cases]
        found = execute(program.path, inputs, method=method)
        if method == "prefill":
            precise = [[_logits(exact, case.inputs[0])] for case in cases]
        else:
            precise = run_module(compressed, exact, inputs)
        for i, name in enumerate(names.outputs):
            arrays = (
                np.stack([result[name] for result in found]),
                np.stack([case.outputs[i] for case in cases]),
                np.stack([outputs[i] for outputs in precise]),
            )
            judged.append(compare_rows(f"{name} of {len(cases)} bundled cases", *arrays))
    return judged


def _logits(model: torch.nn.Module, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.no_grad():
        ids = torch.from_numpy(tokens.copy())
        logits: NDArray[np.float32] = model(input_ids=ids, use_cache=False).logits.numpy()
    return logits


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
            dtype = dtype_of(value)
            example = compressed.captured.example_inputs.get(name)
            limit = integer_limit(compressed, example)
            if np.issubdtype(dtype, np.floating):
                call[name] = generator.standard_normal(value["sizes"]).astype(dtype)
            else:
                call[name] = generator.integers(0, limit, value["sizes"]).astype(dtype)
        drawn.append(call)
    return drawn


def integer_limit(compressed: CompressedModel, example: object) -> int:
    """Return the end of the range of an integer input: the vocabulary, or what the example has."""
    if compressed.captured.task == "causal-lm":
        vocabulary = compressed.captured.config.get("vocab_size")
        if isinstance(vocabulary, int):
            return vocabulary
    if isinstance(example, Tensor) and example.numel():
        return int(example.max()) + 1
    return 2


def run_module(
    compressed: CompressedModel,
    model: torch.nn.Module,
    inputs: Sequence[Mapping[str, NDArray[Any]]],
) -> list[list[NDArray[np.float32]]]:
    """Run a torch module on every input; return its outputs in the program's order."""
    tensors = [{k: torch.from_numpy(v.copy()) for k, v in call.items()} for call in inputs]
    function: Function = function_of(compressed.captured, model, tensors[0])
    with torch.no_grad():
        return [[value.numpy() for value in function(**call)] for call in tensors]
