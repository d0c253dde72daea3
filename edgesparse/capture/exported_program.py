"""Capture a ``.pt2`` file of ``torch.export.save``."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import torch
from torch import fx

from edgesparse.capture.lift import lift
from edgesparse.capture.module import capture_module
from edgesparse.capture.pt2_archive import check_archive
from edgesparse.errors import SourceError
from edgesparse.model import CapturedModel, Source, TensorInfo, TensorKind


def capture_exported_program(path: Path) -> CapturedModel:
    """Capture an exported program; its weights are read into memory.

    The graph stays, with its dynamic shapes; calls on weights become calls of ordinary layers. A
    bare parameter ``scale`` used as the weight of a linear becomes ``scale.weight``.

    Raises:
        SourceError: Damaged, without example inputs, or asking for more than tensors and ATen
            operators: see ``pt2_archive``.
    """
    check_archive(path)
    program = _load(path)
    if program.example_inputs is None:
        raise SourceError(f"{path}: holds no example inputs; export and save it with them")
    stateful = program.module(check_guards=False)
    # A plain graph module: without the program's input checks it can be traced again.
    module = fx.GraphModule(stateful, stateful.graph, class_name="GraphModule")
    lifted = lift(module)
    args, kwargs = program.example_inputs
    captured = capture_module(
        module,
        inspect.signature(module.forward).bind(*args, **kwargs).arguments,
        source=Source(kind="exported_program", location=str(path), weights=(path,)),
        bypassed=lifted.elsewhere,
    )
    tensors = tuple(_with_norms(tensor, lifted.norms) for tensor in captured.tensors)
    return replace(captured, tensors=tensors)


def _load(path: Path) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(path)
    except Exception as error:  # torch reports damage with many exception types
        first_line = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"{path}: not a program that torch {torch.__version__} can load: {first_line}"
        ) from error


def _with_norms(tensor: TensorInfo, norms: frozenset[str]) -> TensorInfo:
    if tensor.kind is TensorKind.OTHER and norms & {tensor.name, *tensor.aliases}:
        return replace(tensor, kind=TensorKind.NORM, reason="a normalization")
    return tensor
