"""Write a compressed model as a Core ML package, its weights exactly the solver's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from edgesparse.batchnorm import absorb
from edgesparse.errors import ExportError, Unsupported, UsageError
from edgesparse.exporting import Artifact, nbytes_on_disk
from edgesparse.runtime.modules import build_exportable
from edgesparse_converters.coreml import interface, translate
from edgesparse_converters.coreml.convert import (
    combine,
    convert,
    enumerate_shapes,
    save,
    trace,
)
from edgesparse_converters.coreml.forms import Choice, Form, block_shape, form_of
from edgesparse_converters.coreml.options import OLD_SYSTEMS, Options
from edgesparse_converters.coreml.placeholders import Numbers, fill, numbers_of
from edgesparse_converters.coreml.shapes import open_axes, parse_shapes, resize
from edgesparse_converters.coreml.stateful import Stateful

if TYPE_CHECKING:
    from edgesparse.model import CapturedModel, CompressedModel


def export(
    compressed: CompressedModel, path: Path, options: Options, *, streamed: bool = True
) -> Artifact:
    """Write ``compressed`` to ``path``.

    Args:
        compressed: The packed model.
        path: The package to write; it does not exist.
        options: What was chosen.
        streamed: Convert with placeholders and write the numbers weight by weight: less memory, the
            same file. Packages of several functions are always written whole.

    Raises:
        Unsupported: Operators or inputs Core ML has no form for, by name.
        ExportError: coremltools fails for another reason.
    """
    _refuse_old_system(compressed, options)
    streamed = (streamed or options.system in OLD_SYSTEMS) and options.context is None
    storage = translate.Storage(
        bits={name: packed.spec.bits for name, packed in compressed.packed.items()},
        choice=Choice(
            tables=options.tables,
            late_scale=options.system == "iOS26",
            decoded=options.system in OLD_SYSTEMS,
        ),
        numbers=numbers_of(compressed) if streamed else None,
    )
    with translate.storing(storage), TemporaryDirectory(dir=path.parent) as folder:
        parts = {}
        for name, module, inputs in functions(compressed, options, hollow=streamed):
            model = _convert(module, inputs, options)
            parts[name] = Path(folder) / f"{name}.mlpackage"
            record = {
                "weights": storage.names,
                "tokens": options.tokens,
                "end_tokens": end_tokens(compressed.captured),
            }
            save(model, parts[name], record)
            del model
            if storage.numbers is not None:
                fill(parts[name], whole_forms(storage))
        if len(parts) > 1:
            combine(parts, path, record)
        else:
            next(iter(parts.values())).rename(path)
    _refuse_lost(compressed, storage)
    return Artifact(
        path=path,
        target="coreml",
        nbytes=nbytes_on_disk(path),
        tool_versions={name: version(name) for name in ("coremltools", "torch")},
        lowering={name: describe(form) for name, form in storage.written.items()},
        notes=_notes(compressed, storage),
    )


def _convert(module: interface.Interface, inputs: dict[str, torch.Tensor], options: Options) -> Any:
    """Return coremltools' model of one function."""
    program = trace(
        module,
        inputs,
        fused_attention=options.fused_attention,
        open_sizes=open_sizes(inputs, options),
    )
    model = convert(program, interface.output_names(module, inputs), system=options.system)
    if options.shapes is not None:
        model = enumerate_shapes(model, parse_shapes(options.shapes))
    return model


def functions(
    compressed: CompressedModel, options: Options, *, hollow: bool = False
) -> Iterator[tuple[str, interface.Interface, dict[str, torch.Tensor]]]:
    """Yield name, module and example inputs of every function of the package.

    With ``hollow`` packed weights are placeholders, all zeros.
    """
    captured = compressed.captured
    module = build_exportable(compressed, hollow=hollow)
    absorb(module, captured)
    if options.context is None:
        inputs = interface.tensor_inputs(captured, tokens=options.tokens)
        if options.shapes is not None:
            inputs = resize(inputs, parse_shapes(options.shapes))
        yield "main", interface.wrap(module, captured), inputs
        return
    if captured.task != "causal-lm":
        raise UsageError(f"{captured.name} is no language model; leave the context out")
    stateful = Stateful(module, captured, options.context)
    model = interface.Interface(stateful, {}, ("input_ids", "positions"))
    for name, length in {"prefill": options.prefill, "decode": 1}.items():
        tokens = torch.zeros(1, length, dtype=torch.int64)
        yield name, model, {"input_ids": tokens, "positions": torch.arange(length)}


def whole_forms(storage: translate.Storage) -> dict[str, Callable[[], Form]]:
    """Return a way to each weight's numbers, by the name of its value in the program."""
    assert storage.numbers is not None

    def whole(numbers: Numbers, name: str) -> Form:
        return form_of(numbers(name), storage.choice)

    return {value: partial(whole, storage.numbers, name) for name, value in storage.names.items()}


def end_tokens(captured: CapturedModel) -> list[int]:
    """Return the tokens that end a text; none where the model does not say."""
    end = captured.config.get("eos_token_id")
    return [token for token in (end if isinstance(end, list) else [end]) if token is not None]


def describe(form: Form) -> str:
    """Return the operations of a form and the type of its numbers, for people."""
    kind = "float16" if form.bits == 16 else f"{'uint' if form.is_indexed else 'int'}{form.bits}"
    return f"{' + '.join(form.operations)}, {kind}"


def open_sizes(
    inputs: Mapping[str, torch.Tensor], options: Options
) -> dict[str, dict[int, Any] | None] | None:
    """Return which sizes of which inputs are open, as torch.export takes it."""
    if options.shapes is not None:
        return open_axes(inputs, parse_shapes(options.shapes))
    if not options.flexible:
        return None
    length = torch.export.Dim("tokens", min=2, max=options.tokens)
    return {name: {1: length} for name in inputs}


def _refuse_old_system(compressed: CompressedModel, options: Options) -> None:
    """Refuse a system without constants of few bits, by name, unless plain values are allowed."""
    if options.system not in OLD_SYSTEMS or options.allow_conversion or not compressed.packed:
        return
    names = [f"{name} ({packed.spec.name})" for name, packed in compressed.packed.items()]
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise Unsupported(
        f"{options.system} has no form for {', '.join(names[:5])}{rest}: constants with a mask or "
        "of groups begin with iOS18; export for iOS18, or allow the conversion to float16 values "
        "with --allow-conversion, in Python allow_conversion=True"
    )


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
        if form.bits != spec.bits and form.bits < 16:
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
    decoded = sum(
        form.bits == 16 and compressed.packed[name].spec.bits < 16
        for name, form in storage.written.items()
    )
    if decoded:
        notes.append(f"{decoded} weights are written as float16 values in full: as large as dense")
    notes += [
        f"{count} weights of {bits} bits are written as 4-bit integers of the same values: tables "
        "would cost more than the narrower codes save"
        for bits, count in sorted(widened.items())
    ]
    return tuple(notes)
