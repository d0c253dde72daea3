"""Write a compressed model as a Core ML package, its weights exactly the solver's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from edgesparse.batchnorm import absorb
from edgesparse.errors import UsageError
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
from edgesparse_converters.coreml.forming import form_of
from edgesparse_converters.coreml.forms import Choice, Form
from edgesparse_converters.coreml.merge import merge
from edgesparse_converters.coreml.options import OLD_SYSTEMS, Options
from edgesparse_converters.coreml.placeholders import Numbers, fill, is_hollow, numbers_of
from edgesparse_converters.coreml.remarks import notes, refuse_lost, refuse_old_system
from edgesparse_converters.coreml.shapes import (
    largest,
    open_axes,
    open_ranges,
    parse_ranges,
    parse_shapes,
    resize,
)
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
            same file.

    Raises:
        Unsupported: Operators or inputs Core ML has no form for, by name.
        ExportError: coremltools fails for another reason.
    """
    refuse_old_system(compressed, options)
    streamed = streamed or options.system in OLD_SYSTEMS
    storage = translate.Storage(
        bits={name: packed.spec.bits for name, packed in compressed.packed.items()},
        choice=Choice(
            tables=options.tables,
            late_scale=options.system == "iOS26",
            old=options.system in OLD_SYSTEMS,
        ),
        numbers=numbers_of(compressed) if streamed else None,
    )
    with translate.storing(storage), TemporaryDirectory(dir=path.parent) as folder:
        parts = {}
        for name, module, inputs in functions(compressed, options, hollow=streamed):
            model = _convert(module, inputs, options)
            parts[name] = Path(folder) / f"{name}.mlpackage"
            save(model, parts[name], _record(compressed, storage, options))
            del model
        _join(parts, path, storage, _record(compressed, storage, options))
    refuse_lost(compressed, storage)
    return Artifact(
        path=path,
        target="coreml",
        nbytes=nbytes_on_disk(path),
        tool_versions={name: version(name) for name in ("coremltools", "torch")},
        lowering={name: describe(form) for name, form in storage.written.items()},
        notes=notes(compressed, storage),
    )


def _record(
    compressed: CompressedModel, storage: translate.Storage, options: Options
) -> dict[str, Any]:
    """Return what a package says about itself in its metadata."""
    return {
        "weights": storage.names,
        "tokens": options.tokens,
        "end_tokens": end_tokens(compressed.captured),
    }


def _join(
    parts: Mapping[str, Path], path: Path, storage: translate.Storage, record: Mapping[str, Any]
) -> None:
    """Make one package of the parts, its weights filled in where they are placeholders."""
    if len(parts) == 1:
        next(iter(parts.values())).rename(path)
    elif storage.numbers is None:
        combine(parts, path, record)
    else:
        empty = {storage.names[name] for name, f in storage.written.items() if is_hollow(f)}
        merge(parts, path, record, hollow=empty)
    if storage.numbers is not None:
        fill(path, whole_forms(storage))


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
        if options.ranges is not None:
            inputs = resize(inputs, largest(parse_ranges(options.ranges)))
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
    if options.ranges is not None:
        return open_ranges(inputs, parse_ranges(options.ranges))
    if not options.flexible:
        return None
    length = torch.export.Dim("tokens", min=2, max=options.tokens)
    return {name: {1: length} for name in inputs}
