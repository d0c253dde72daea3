"""How long the runtime takes for the product of one token with a weight, measured on this host.

A layer of random weights is exported as ``export`` does it, without options but the activations,
and run in a child process on one thread, over so many copies of the file that weights come from
memory. What a call of the runtime takes whatever it computes is in the time: 10 µs of 150 to 1,000.

    rates-<key>.json   {"version": 1, "rates": {kernel: {weight: nanoseconds a weight}}}

``key`` is the SHA-256 of everything the times depend on beside the layer: the processor, the
version of the runtime, the sources of our kernels; see ``edgesparse.store.measurements``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgesparse.budget import Budget
from edgesparse.capture import load
from edgesparse.model import CapturedModel, CompressedModel, TensorInfo, TensorKind
from edgesparse.packed import FormatSpec, PackedTensor
from edgesparse.pattern import DENSE, Pattern
from edgesparse.planner.speed import COLUMNS, ROWS, STREAMED_NBYTES, random_weight
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.recipe import Rule
from edgesparse.store.measurements import Measurements, read_measurements, write_measurements
from edgesparse_converters.executorch.arithmetic import activations_for, require_activations
from edgesparse_converters.executorch.lowering import automatic
from edgesparse_converters.executorch.native import CACHE_VARIABLE, cache_folder, fingerprint
from edgesparse_converters.executorch.program import read_program
from edgesparse_converters.executorch.session import build_kernels, run_child

VERSION = 1
"""Of the file and of how times are measured: a change of either measures everything anew."""

_log = logging.getLogger(__name__)
_TIMEOUT = 3600.0
_WHAT = "rates"
_UNNAMED = "int16"  # activations that the name of a kernel leaves out


@dataclass(frozen=True)
class Layer:
    """What the time of a product depends on.

    Attributes:
        lowering: ``packed``, ``xnnpack`` or ``float32``.
        spec: How the weight is packed; None for float32.
        activations: How they enter our operators; of no meaning for others.
    """

    lowering: str
    spec: FormatSpec | None = None
    activations: str = _UNNAMED

    @property
    def kernel(self) -> str:
        """What computes it: the name its rates are kept under."""
        named = self.activations != _UNNAMED
        return f"{self.lowering} {self.activations}" if named else self.lowering

    @property
    def weight(self) -> str:
        """What the weight is: the name a rate is kept under."""
        if self.spec is None:
            return "32-bit"
        pattern = self.spec.pattern
        removed = "" if pattern.is_dense else f" {pattern} {pattern.sparsity:g}"
        return f"{self.spec.name} g{self.spec.group_size}{removed}"


def product_rates(entries: Sequence[TensorPlan], activations: str) -> list[float]:
    """Return nanoseconds a weight for each entry; see ``edgesparse.exporters.Paced``.

    Raises:
        UsageError: No such activations.
    """
    require_activations(activations)
    layers, known = [layer_of(entry, activations) for entry in entries], _known()
    unknown = [
        layer for layer in dict.fromkeys(layers) if layer.weight not in known.get(layer.kernel, {})
    ]
    if unknown:
        _log.info("timing %d kinds of layers in ExecuTorch's runtime", len(unknown))
        for layer, rate in zip(unknown, measure_rates(unknown), strict=True):
            known.setdefault(layer.kernel, {})[layer.weight] = rate
        if (path := rates_path()) is not None:
            write_measurements(path, _WHAT, known, version=VERSION)
    return [known[layer.kernel][layer.weight] for layer in layers]


def layer_of(entry: TensorPlan, activations: str) -> Layer:
    """Return what a tensor becomes in a program with ``lowering="auto"`` and these activations."""
    if entry.spec is None:
        return Layer("float32")
    spec, shape = entry.spec, entry.tensor.shape
    lowering = automatic(
        spec, shape, _kinds(entry.tensor), is_expert=entry.tensor.kind is TensorKind.EXPERT
    )
    per_row = spec.group_size >= entry.tensor.matrix_shape[1]
    group_size = COLUMNS if per_row else spec.group_size
    timed = replace(spec, group_size=group_size, pattern=_pattern_read(spec))
    if lowering != "packed":
        return Layer(lowering, timed)
    return Layer(lowering, timed, activations_for(spec, shape, activations))


def routed_as(entry: TensorPlan, activations: str) -> str | None:
    """Return the activations of ``edgesparse::routed`` for an expert; None for one not packed."""
    if entry.spec is None:
        return None
    return activations_for(entry.spec, entry.tensor.shape, activations)


def _kinds(tensor: TensorInfo) -> list[str]:
    tied = ["embedding"] if tensor.kind is TensorKind.EMBEDDING else []
    return [*tied, "linear"]


def _pattern_read(spec: FormatSpec) -> Pattern:
    """Return the pattern as far as the kernels of a format know of it."""
    if spec.name.startswith("dense"):
        return DENSE
    is_bitmask = spec.name.startswith("bitmask")
    return Pattern(sparsity=spec.pattern.sparsity) if is_bitmask else spec.pattern


def measure_rates(layers: Sequence[Layer]) -> list[float]:
    """Return nanoseconds a weight for each layer, measured now in one process.

    Raises:
        MissingTool: No compiler is here to build our operators.
        SourceError: The runtime failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgesparse.") as folder:
        paths = [Path(folder) / f"{i}.pte" for i in range(len(layers))]
        for layer, path in zip(layers, paths, strict=True):
            _export(layer, path)
            build_kernels(read_program(path))
        arguments = ["pace", folder, str(len(layers)), str(STREAMED_NBYTES)]
        run_child(arguments, paths[0], _TIMEOUT)
        times = np.load(Path(folder) / "times.npy", allow_pickle=False)
    return [float(time) / (ROWS * COLUMNS) for time in times]


def _export(layer: Layer, path: Path) -> None:
    from edgesparse_converters.executorch.exporter import EXPORTER

    captured = _captured()
    name = captured.tensors[0].name
    packed = {} if layer.spec is None else {name: _random(layer.spec)}
    compressed = CompressedModel(
        captured=captured,
        packed=packed,
        kept={} if packed else captured.weights(),
        plan=Plan(tensors=(), nbytes=0, budget=Budget()),
    )
    EXPORTER.export(compressed, path, lowering=layer.lowering, activations=layer.activations)


@lru_cache(maxsize=1)
def _captured() -> CapturedModel:
    module = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False)).eval()
    return load(module, example_inputs=torch.zeros(1, COLUMNS))


def _random(spec: FormatSpec) -> PackedTensor:
    rule = Rule(
        bits=spec.bits, group_size=spec.group_size or 128, pattern=spec.pattern,
        method="magnitude", quantizer="rtn",
    )  # fmt: skip
    return random_weight(spec, rule)


@lru_cache(maxsize=1)
def _known() -> Measurements:
    """Return the rates this process knows, which grow: those of the file to begin with."""
    path = rates_path()
    return {} if path is None else read_measurements(path, _WHAT, version=VERSION)


def rates_path() -> Path | None:
    """Return where rates are kept; None where the user wants nothing kept."""
    if os.environ.get(CACHE_VARIABLE) == "":
        return None
    basis = f"{_processor()}{version('executorch')}{fingerprint()}"
    return cache_folder() / f"rates-{hashlib.sha256(basis.encode()).hexdigest()[:40]}.json"


def _processor() -> str:
    """Return the processor's name and what it can do, which a virtual machine may limit."""
    path, told = Path("/proc/cpuinfo"), ("model name", "CPU part", "flags", "Features")
    if not path.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    return "".join(line for line in first.splitlines() if line.startswith(told))
