"""Write a compressed model as a Core ML package, its weights exactly the solver's."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgesparse.errors import ExportError, Unsupported, UsageError
from edgesparse.exporting import Artifact, nbytes_on_disk
from edgesparse.runtime.modules import build_exportable
from edgesparse_converters.coreml import compat, frontend, interface, translate
from edgesparse_converters.coreml.forms import Choice, Form, block_shape

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

SYSTEMS = ("iOS18", "iOS26")
"""Deployment targets that know sparse and sub-byte constants; macOS 15 and 26 are the same."""

METADATA_KEY = "edgesparse"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen about a package.

    Attributes:
        system: Oldest system that loads it: ``iOS18`` or ``iOS26``.
        tables: Write 4-bit codes as indices into tables, which the Neural Engine prefers.
        fused_attention: Leave attention one operator; see ``frontend.lower``.
        tokens: Length of a language model's input; None takes the example's.
    """

    system: str = "iOS18"
    tables: bool = False
    fused_attention: bool = False
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.system not in SYSTEMS:
            raise UsageError(
                f"system {self.system!r}: expected {' or '.join(SYSTEMS)}; older systems have no "
                "constants of 4 bits with a mask"
            )
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"tokens is {self.tokens}, expected at least 1")


def read_options(values: Mapping[str, Any]) -> Options:
    """Return options by name.

    Raises:
        UsageError: A name that is no option.
    """
    known = [field.name for field in fields(Options)]
    for name in values:
        if name not in known:
            raise UsageError(f"coreml has no option {name!r}; known: {', '.join(known)}")
    return Options(**values)


def export(compressed: CompressedModel, path: Path, options: Options) -> Artifact:
    """Write ``compressed`` to ``path``.

    Raises:
        Unsupported: Operators or inputs Core ML has no form for, by name.
        ExportError: coremltools fails for another reason.
    """
    module = interface.wrap(build_exportable(compressed), compressed.captured)
    inputs = interface.tensor_inputs(compressed.captured, tokens=options.tokens)
    names = interface.output_names(module, inputs)
    program = trace(module, inputs, options)
    storage = translate.Storage(
        bits={name: packed.spec.bits for name, packed in compressed.packed.items()},
        choice=Choice(tables=options.tables, late_scale=options.system == "iOS26"),
    )
    with translate.storing(storage):
        model = convert(program, names, options)
    _refuse_lost(compressed, storage)
    model.user_defined_metadata[METADATA_KEY] = json.dumps(
        {"version": version("edgesparse"), "weights": storage.names}
    )
    with compat.quiet():
        model.save(str(path))
    # A map from operators to torch nodes for ExecuTorch's debugger, as large as the program.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    return Artifact(
        path=path,
        target="coreml",
        nbytes=nbytes_on_disk(path),
        tool_versions={name: version(name) for name in ("coremltools", "torch")},
        lowering={name: describe(form) for name, form in storage.written.items()},
        notes=_notes(compressed, storage),
    )


def trace(
    module: torch.nn.Module, inputs: dict[str, torch.Tensor], options: Options
) -> torch.export.ExportedProgram:
    """Return the module as a graph coremltools can translate.

    Raises:
        Unsupported: torch cannot trace it, or operators have no translation.
    """
    compat.apply()
    with compat.quiet():
        try:
            program = torch.export.export(module, (), inputs, strict=False)
        except Exception as error:
            # torch.export raises whatever the traced code or its own stages raise.
            raise Unsupported(
                f"torch.export cannot trace the model: {type(error).__name__}: {_line(error)}"
            ) from error
        return frontend.lower(program, fused_attention=options.fused_attention)


def convert(
    program: torch.export.ExportedProgram, outputs: tuple[str, ...], options: Options
) -> Any:
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
                minimum_deployment_target=getattr(ct.target, options.system),
                compute_precision=ct.precision.FLOAT16,
                skip_model_load=True,
            )
        except Exception as error:
            # coremltools raises bare ValueError, KeyError, AssertionError, … with its reasons.
            raise ExportError(
                f"coremltools cannot convert the model: {type(error).__name__}: {_line(error)}"
            ) from error


def describe(form: Form) -> str:
    """Return the operations of a form and the type of its numbers, for people."""
    kind = (
        "float16"
        if form.bits == 16
        else f"{'uint' if form.table is not None else 'int'}{form.bits}"
    )
    return f"{' + '.join(form.operations)}, {kind}"


def _refuse_lost(compressed: CompressedModel, storage: translate.Storage) -> None:
    """Refuse a program that does not use every packed weight through its operator."""
    lost = sorted(set(compressed.packed) - set(storage.written))
    if lost:
        raise ExportError(
            f"the traced program never reads {', '.join(lost[:5])}; such weights would be left "
            "out of the package: leave them out of the recipe or use them in forward"
        )


def _notes(compressed: CompressedModel, storage: translate.Storage) -> tuple[str, ...]:
    notes = []
    widened: Counter[int] = Counter()
    for name, form in storage.written.items():
        spec = compressed.packed[name].spec
        if form.bits != spec.bits:
            widened[spec.bits] += 1
        if form.scales is None:
            continue
        stored, chosen = form.scales[0].size, spec.groups(math.prod(form.shape[1:]))
        if stored > chosen:
            block = "x".join(map(str, block_shape(form.shape, spec.group_size)[1:]))
            notes.append(
                f"{name}: groups of {spec.group_size} do not fall on blocks of shape {form.shape}; "
                f"scales are repeated for blocks of {block}, {stored} a row instead of {chosen}"
            )
    notes += [
        f"{count} weights of {bits} bits are written as 4-bit integers of the same values: tables "
        "would cost more than the narrower codes save"
        for bits, count in sorted(widened.items())
    ]
    return tuple(notes)


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:300] if text else "no reason given"
