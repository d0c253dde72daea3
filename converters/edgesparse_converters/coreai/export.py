"""Write a compressed model as a Core AI asset, its weights exactly the solver's."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgesparse.batchnorm import absorb
from edgesparse.errors import ExportError, Unsupported
from edgesparse.exporting import Artifact, nbytes_on_disk
from edgesparse.packed import FORMATS, Codes
from edgesparse.runtime.modules import build_exportable
from edgesparse_converters.coreai.lowering import Weight
from edgesparse_converters.coreml import interface

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

RECORD = "edgesparse"
STORED_NAME = "weight_{}"
"""Under which name the constants of a weight are stored."""
OPERATORS = ("dequantize", "dequantize_shifted", "look_up", "sparse_values")
"""Operators of the namespace ``edgesparse`` that are weights; their last argument is the name."""


def export(compressed: CompressedModel, path: Path, *, tokens: int | None) -> Artifact:
    """Write ``compressed`` to ``path``.

    Raises:
        Unsupported: torch cannot trace it.
        ExportError: Core AI's converter fails for another reason.
    """
    names = {name: STORED_NAME.format(index) for index, name in enumerate(compressed.packed)}
    module = build_exportable(compressed)
    absorb(module, compressed.captured)
    wrapped = interface.wrap(module, compressed.captured)
    inputs = interface.tensor_inputs(compressed.captured, tokens=tokens)
    with quiet():
        program = _convert(wrapped, inputs, _Translator(compressed, names))
        record = {"version": version("edgesparse"), "weights": {v: k for k, v in names.items()}}
        program.save_asset(path).update_metadata(lambda data: data.set_custom(RECORD, record))
    return Artifact(
        path=path,
        target="coreai",
        nbytes=nbytes_on_disk(path),
        tool_versions={name: version(name) for name in ("coreai-core", "coreai-torch", "torch")},
        lowering={
            n: f"Core AI, {p.spec.name} {p.spec.scheme}" for n, p in compressed.packed.items()
        },
        notes=("all that is not packed is float32, and so is what the asset computes",),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converter's progress and what it says about versions to itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):
            yield


class _Translator:
    """Gives every weight its operations, once, however often the graph asks for it."""

    def __init__(self, compressed: CompressedModel, names: dict[str, str]) -> None:
        self._compressed, self._names = compressed, names
        self._emitted: dict[str, Any] = {}

    def __call__(self, _values: Any, node: torch.fx.Node, _location: Any) -> Any:
        """Translate one call of an operator of ours."""
        name = str(node.args[-1])
        if name not in self._emitted:
            self._emitted[name] = Weight(_codes(self._compressed, name), self._names[name]).emit()
        return self._emitted[name]


def _convert(
    module: interface.Interface, inputs: dict[str, torch.Tensor], translator: _Translator
) -> Any:
    """Return Core AI's program of a module."""
    from coreai_torch import TorchConverter, get_decomp_table

    try:
        traced = torch.export.export(module, (), inputs, strict=False)
        traced = traced.run_decompositions(get_decomp_table())
    except Exception as error:
        # torch.export raises whatever the traced code or its own stages raise.
        raise Unsupported(f"torch.export cannot trace the model: {_line(error)}") from error
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
    for operator in OPERATORS:
        converter.register_torch_lowering(f"edgesparse::{operator}.default")(translator)
    outputs = interface.output_names(module, inputs)
    try:
        return converter.add_exported_program(
            traced, input_names=list(inputs), output_names=list(outputs)
        ).to_coreai()
    except Exception as error:
        # The converter raises bare ValueError, KeyError, RuntimeError, … with its reasons.
        raise ExportError(f"Core AI cannot convert the model: {_line(error)}") from error


def _codes(compressed: CompressedModel, name: str) -> Codes:
    packed = compressed.packed[name]
    return FORMATS.get(packed.spec.name).unpack(packed)


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else 'no reason given'}"
