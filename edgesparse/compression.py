"""``compress``: run the plan over a captured model, one group of layers at a time.

Every step works on a private copy in float32, its batch norms folded. What a solver chose is packed
at once; the copy gets the decoded values, so that every later layer is solved on the inputs it will
really have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import edgesparse
from edgesparse.batchnorm import fold
from edgesparse.calibrate import Statistic, Statistics, calibrate, calibration_batches
from edgesparse.calibrate.inputs import as_matrix
from edgesparse.calibrate.record import disable_cache
from edgesparse.calibrate.windows import Batch, digest
from edgesparse.errors import CalibrationError, UsageError
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.planner import Plan, TensorPlan
from edgesparse.solve import needs_of, solve_tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One tensor done.

    Attributes:
        done: Tensors done, this one included.
        total: Tensors to do.
        name: The tensor.
        error: Its measured relative output error.
        seconds: Since the start.
    """

    done: int
    total: int
    name: str
    error: float
    seconds: float


def compress(
    captured: CapturedModel,
    plan: Plan,
    calibration: object = None,
    *,
    device: str = "cpu",
    seed: int = 0,
    windows: int | None = None,
    window: int = 512,
    progress: Callable[[Progress], None] | None = None,
) -> CompressedModel:
    """Prune, quantize and pack the tensors that ``plan`` names.

    Args:
        captured: The model; not changed.
        plan: What to do with each tensor.
        calibration: See ``calibrate.calibration_batches``; may be None when no method needs
            inputs, then errors are measured on the weights alone.
        device: Where blocks run and solvers compute, ``cpu`` or ``cuda``.
        seed: Which windows of the calibration text.
        windows: Windows of tokens; None takes as many as the text holds, at most 256.
        window: Tokens in a window.
        progress: Called after every tensor.

    Raises:
        CalibrationError: Missing or unusable calibration data, a weight or activation that is not
            finite; the message names the layer.
    """
    started, where = time.monotonic(), _device(device)
    todo = {p.tensor.name: p for p in plan.tensors if p.spec is not None}
    model = captured.loader().float()
    disable_cache(model)
    _require_finite(model, todo)
    folded = fold(model, captured, todo.keys()) if todo else {}
    needs = _needs_by_module(model, todo, measured=calibration is not None)
    batches = _batches(captured, calibration, needs, device, seed, windows, window)
    run = _Run(model, todo, progress, started)
    if todo:
        calibrate(model, batches, needs, run.solve, device=where)
    stored = captured.weights()
    kept = {t.name: stored[t.name] for t in captured.tensors if t.name not in run.packed} | folded
    metadata = {
        "calibration": {"sha256": digest(batches), "samples": _samples(batches), "seed": seed},
        "tools": {"edgesparse": edgesparse.__version__, "torch": torch.__version__},
        "device": device,
        "seconds": round(time.monotonic() - started, 2),
    }
    order = [t.name for t in captured.tensors if t.name in run.packed]
    return CompressedModel(
        captured=captured,
        packed={name: run.packed[name] for name in order},
        kept=kept,
        plan=plan,
        errors={name: run.errors[name] for name in order},
        metadata=metadata,
    )


def compress_dense_alternative(
    captured: CapturedModel, plan: Plan, calibration: object = None, **options: Any
) -> CompressedModel | None:
    """Run the same job on the plan's equal-byte alternative without sparsity; None without one.

    ``options`` are those of ``compress``.
    """
    if plan.dense_alternative is None:
        return None
    return compress(captured, plan.dense_alternative, calibration, **options)


@dataclass
class _Run:
    """The state of one ``compress``: what is packed so far."""

    model: nn.Module
    todo: Mapping[str, TensorPlan]
    progress: Callable[[Progress], None] | None
    started: float
    packed: dict[str, PackedTensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_module = {_module_of(self.model, p): name for name, p in self.todo.items()}

    def solve(self, modules: tuple[str, ...], statistics: Statistics) -> None:
        """Solve the tensors of modules with common inputs and put the decoded values in place."""
        for module in modules:
            self._solve_one(self.by_module[module], statistics)

    def _solve_one(self, name: str, statistics: Statistics) -> None:
        planned = self.todo[name]
        assert planned.rule is not None
        assert planned.spec is not None
        parameter = self.model.get_parameter(name)
        weight = as_matrix(parameter.data)
        codes = solve_tensor(name, weight, statistics, planned.rule, planned.spec)
        decoded = torch.from_numpy(codes.decode()).to(weight.device)
        self.errors[name] = statistics.output_error(weight, decoded)
        self.packed[name] = FORMATS.get(planned.spec.name).pack(
            _shaped(codes, planned.tensor.shape), pattern=planned.rule.pattern
        )
        parameter.data.copy_(decoded.reshape(parameter.shape))
        if self.progress is not None:
            self.progress(
                Progress(
                    done=len(self.packed),
                    total=len(self.todo),
                    name=name,
                    error=self.errors[name],
                    seconds=time.monotonic() - self.started,
                )
            )


def _shaped(codes: Codes, shape: tuple[int, ...]) -> Codes:
    """Return codes [N, K] in the weight's own shape."""
    return Codes(
        values=codes.values.reshape(shape),
        scales=codes.scales,
        keep_mask=codes.keep_mask.reshape(shape),
        bits=codes.bits,
        group_size=codes.group_size,
    )


def _module_of(model: nn.Module, planned: TensorPlan) -> str:
    """Return the module whose inputs a tensor is solved on: a linear before an embedding."""
    paths = [n.rpartition(".")[0] for n in (planned.tensor.name, *planned.tensor.aliases)]
    linear = [p for p in paths if not isinstance(model.get_submodule(p), nn.Embedding)]
    return (linear or paths)[0]


def _needs_by_module(
    model: nn.Module, todo: Mapping[str, TensorPlan], *, measured: bool
) -> dict[str, frozenset[Statistic]]:
    """Return what every module's solver asks for, and the Hessian to measure the error with."""
    needs = {}
    extra = frozenset({Statistic.HESSIAN}) if measured else frozenset()
    for planned in todo.values():
        assert planned.rule is not None
        assert planned.spec is not None
        needs[_module_of(model, planned)] = needs_of(planned.rule, planned.spec) | extra
    return needs


def _batches(
    captured: CapturedModel,
    calibration: object,
    needs: Mapping[str, frozenset[Statistic]],
    device: str,
    seed: int,
    windows: int | None,
    window: int,
) -> list[Batch]:
    """Return the calibration batches, [] where none were given and none are needed."""
    if calibration is not None:
        return calibration_batches(
            captured,
            calibration,
            windows=windows,
            window=window,
            seed=seed,
            batch_size=8 if device == "cpu" else 32,
        )
    asking = next((module for module, need in needs.items() if need), None)
    if asking is not None:
        raise CalibrationError(
            f"{asking}: its method needs calibration data, and none was given; give a text or "
            "inputs, or use methods that need none (magnitude, rtn)"
        )
    return []


def _require_finite(model: nn.Module, todo: Mapping[str, TensorPlan]) -> None:
    """Refuse weights that are NaN or infinite."""
    for name in todo:
        wrong = int((~torch.isfinite(model.get_parameter(name))).sum())
        if wrong:
            raise CalibrationError(
                f"{name}: {wrong} weights are NaN or infinite; the source model is damaged"
            )


def _device(name: str) -> torch.device:
    """Return the device, refusing one this machine does not have."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name}: this machine has no CUDA device; use device='cpu'")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is not known; use 'cpu' or 'cuda'") from None


def _samples(batches: list[Batch]) -> int:
    """Return the number of samples in all batches."""
    firsts = (next(iter(batch.values()), None) for batch in batches)
    return sum(len(v) for v in firsts if isinstance(v, (Tensor, np.ndarray)) and v.ndim)
