"""The proof: weights read back from the file, and the file executed against the packed model.

A program with one method is run on random inputs; one with a cache generates, prompt and all, and
each row of logits is compared with that of the whole sequence in torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse.runtime.modules import build_decoded
from edgesparse.verdict import Verdict, describe_inputs
from edgesparse_converters.executorch.assemble import build_reference
from edgesparse_converters.executorch.caching import use_rounded_attention
from edgesparse_converters.executorch.cases import (
    check_cases,
    draw_inputs,
    integer_limit,
    run_module,
)
from edgesparse_converters.executorch.generation import context_of, generate
from edgesparse_converters.executorch.lowering import Form, Use
from edgesparse_converters.executorch.metadata import read_metadata
from edgesparse_converters.executorch.program import Program, read_program
from edgesparse_converters.executorch.readback import check_layers
from edgesparse_converters.executorch.rows import compare_rows
from edgesparse_converters.executorch.session import execute

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

Arrays = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


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
    layers = [
        check
        for method in ("forward", "prefill")
        if method in program.methods
        for check in check_layers(program, method, uses, compressed.packed)
    ]
    reference = build_reference(compressed, uses, activations=metadata.activations)
    models = (reference, build_decoded(compressed))
    if metadata.cache == "int8":
        use_rounded_attention(reference)
    if "prefill" in program.methods:
        compared, note = _generated(program, compressed, models, seed=seed)
    else:
        drawn = inputs or draw_inputs(program, compressed, calls=calls, seed=seed)
        compared = _executed(path, compressed, models, drawn)
        note = describe_inputs(len(drawn), given=bool(inputs), seed=seed)
    judged = [compare_rows(name, *arrays) for name, arrays in compared.items()]
    judged += check_cases(program, compressed, models[1])
    return Verdict(
        path=path,
        target="executorch",
        layers=tuple(layers),
        outputs=tuple(check for checks, _ in judged for check in checks),
        runtime=f"executorch {version('executorch')}",
        notes=(note, *(said for _, said in judged)),
    )


def _executed(
    path: Path,
    compressed: CompressedModel,
    models: Sequence[torch.nn.Module],
    inputs: Sequence[Mapping[str, NDArray[Any]]],
) -> dict[str, Arrays]:
    """Return (runtime, reference, exact) of every output, the calls stacked."""
    results = execute(path, inputs)
    reference, exact = (run_module(compressed, model, inputs) for model in models)
    return {
        name: (
            np.stack([result[name] for result in results]),
            np.stack([outputs[i] for outputs in reference]),
            np.stack([outputs[i] for outputs in exact]),
        )
        for i, name in enumerate(results[0])
    }


def _generated(
    program: Program, compressed: CompressedModel, models: Sequence[torch.nn.Module], *, seed: int
) -> tuple[dict[str, Arrays], str]:
    """Return (runtime, reference, exact) of the logits of greedy generation, twice.

    Once after a prompt, and once after a single token: every row reads the cache of those before
    it, so with 8-bit activations a rounding tie early in the prompt reaches all that follow.
    """
    context, vocabulary = context_of(program), integer_limit(compressed, None)
    length = max(1, min(11, context // 2))
    prompt = np.random.default_rng(seed).integers(0, vocabulary, length).tolist()
    count = min(16, context - length + 1)
    long = _continued(program, models, prompt, tokens=count)
    short = _continued(program, models, prompt[:1], tokens=min(2, context))
    note = f"{count} tokens after a random prompt of {length}, 2 after its first, seed {seed}"
    runtime, reference, exact = (np.concatenate(pair) for pair in zip(long, short, strict=True))
    return {"logits": (runtime, reference, exact)}, note


def _continued(
    program: Program, models: Sequence[torch.nn.Module], prompt: list[int], *, tokens: int
) -> Arrays:
    """Return (runtime, reference, exact) of the logits after ``prompt``, ``[tokens, V]`` each."""
    made, logits = generate(program.path, prompt, tokens=tokens)
    sequence = torch.tensor([[*prompt, *made[:-1]]])
    with torch.no_grad():
        reference, exact = (
            model(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 :].numpy()
            for model in models
        )
    return logits, reference, exact


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
