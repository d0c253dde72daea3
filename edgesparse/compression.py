"""``compress``: run the plan over a captured model, one group of layers at a time.

Every step works on a private copy in float32, its batch norms folded. What a solver chose is packed
at once; the copy gets the decoded values, so that every later layer is solved on the inputs it will
really have. With a journal what is packed is durable and leaves memory; with a memory limit the
copy is never whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import edgesparse
from edgesparse.batchnorm import fold
from edgesparse.calibrate import Resources, Statistic, calibrate, calibration_batches
from edgesparse.calibrate.record import disable_cache
from edgesparse.calibrate.replay import Room
from edgesparse.calibrate.team import Team
from edgesparse.calibrate.windows import Batch, digest
from edgesparse.errors import CalibrationError, UsageError
from edgesparse.journal import Journal, begun_batch, identity
from edgesparse.layers import LayerRun, Progress
from edgesparse.memory import peak_nbytes
from edgesparse.model import CapturedModel, CompressedModel
from edgesparse.planner import Plan
from edgesparse.preflight import needs_by_module, room_for, streamable, work_of
from edgesparse.scaling import scale_activations

__all__ = ["Progress", "compress", "compress_dense_alternative"]


def compress(
    captured: CapturedModel,
    plan: Plan,
    calibration: object = None,
    *,
    device: str = "cpu",
    seed: int = 0,
    windows: int | None = None,
    window: int = 512,
    journal: Path | None = None,
    memory_limit: int | None = None,
    team: Team | None = None,
    scales_activations: bool = False,
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
        journal: Directory that keeps finished layers; those of an interrupted run of the same job
            are gone on with. The result is read from there, so keep it until that is saved.
        memory_limit: Bytes of memory that this process may hold; weights are then read block by
            block, and activations beyond the limit lie on disk.
        team: Processes that share the work, each with the same arguments; needs a journal that
            all can reach. Every one returns the whole model.
        scales_activations: Scale columns by their inputs before rounding and fold the inverse into
            the layers before (``scaling``); of use where codes are found by ``rtn``.
        progress: Called after every tensor.

    Raises:
        CalibrationError: Missing or unusable calibration data, a weight or activation that is not
            finite; the message names the layer.
        UsageError: A memory limit that cannot be kept, or a model larger than the memory there is,
            found before any work; activations to scale without calibration data.
        ResumeRefused: The journal is another job's.
        DeviceError: Another process of the team is gone.
    """
    started, where, team = time.monotonic(), _device(device), team or Team()
    if team.size > 1 and journal is None:
        raise UsageError("several processes need a journal: a directory that all of them can reach")
    measured, todo = calibration is not None, work_of(plan)
    room = room_for(
        captured, plan, device=device, window=window, memory_limit=memory_limit, measured=measured,
        at_most=begun_batch(journal),
    )  # fmt: skip
    model = (captured.loader() if memory_limit is None else streamable(captured)).float().eval()
    disable_cache(model)
    needs = needs_by_module(model, todo, measured=measured)
    batches = _batches(captured, calibration, needs, room.batch_size, seed, windows, window)
    run = LayerRun(captured, model, todo, team, progress, started)
    run.packs_beside = where.type == "cuda" and memory_limit is None
    run.require_finite()
    folded = fold(model, captured, todo.keys()) if todo and memory_limit is None else {}
    options = {"device": where.type, "batch_size": room.batch_size}
    scaled: dict[str, Tensor] = {}
    if scales_activations:
        if not batches or memory_limit is not None:
            raise UsageError("scaling by activations needs calibration data and the whole model")
        scaled = scale_activations(model, captured, todo, batches, where)
        folded |= scaled
        options["scales_activations"] = True
    if journal is not None:
        job = identity(captured, plan, calibration=digest(batches), options=options)
        run.journal = _opened(journal, job, team)
    try:
        if todo:
            resources = Resources(
                device=where,
                residence=run.residence(streamed=memory_limit is not None),
                activations=room.activations(journal),
                team=team,
                room=Room.on(where) if memory_limit is None else Room(),
                is_finished=run.is_finished,
            )
            calibrate(model, batches, needs, run.solve, resources=resources)
            run.settle()
    finally:
        run.close()
    metadata = {
        "calibration": {"sha256": digest(batches), "samples": _samples(batches), "seed": seed},
        "tools": {"edgesparse": edgesparse.__version__, "torch": torch.__version__},
        "device": device,
        "seconds": round(time.monotonic() - started, 2),
        "dropped_zero_codes": sum(run.dropped.values()),
    }
    if scales_activations:
        metadata["scaled"] = sorted(scaled)
    if batches and run.unreached:
        metadata["unreached"] = run.unreached
    if memory_limit is not None:
        metadata["memory"] = {"limit_nbytes": memory_limit, "peak_nbytes": peak_nbytes()}
    return _result(captured, plan, run, folded, metadata)


def _result(
    captured: CapturedModel,
    plan: Plan,
    run: LayerRun,
    folded: dict[str, Tensor],
    metadata: Mapping[str, Any],
) -> CompressedModel:
    """Return what a run has done."""
    stored = captured.weights()
    kept = {t.name: stored[t.name] for t in captured.tensors if t.name not in run.errors} | folded
    order = [t.name for t in captured.tensors if t.name in run.errors]
    return CompressedModel(
        captured=captured,
        packed={name: run.packed(name) for name in order},
        kept=kept,
        plan=plan,
        errors={name: run.errors[name] for name in order},
        metadata=metadata,
    )


def _opened(directory: Path, job: Mapping[str, Any], team: Team) -> Journal:
    """Open the journal: first the process that writes it, then the others."""
    if team.leads:
        journal = Journal(directory, job)
    team.agree(None)
    return journal if team.leads else Journal(directory, job, writes=False)


def compress_dense_alternative(
    captured: CapturedModel, plan: Plan, calibration: object = None, **options: Any
) -> CompressedModel | None:
    """Run the same job on the plan's equal-byte alternative without sparsity; None without one.

    ``options`` are those of ``compress``; its journal is a folder of the plan's own.
    """
    if plan.dense_alternative is None:
        return None
    if options.get("journal") is not None:
        options["journal"] = options["journal"] / "alternative"
    return compress(captured, plan.dense_alternative, calibration, **options)


def _batches(
    captured: CapturedModel,
    calibration: object,
    needs: Mapping[str, frozenset[Statistic]],
    batch_size: int,
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
            batch_size=batch_size,
        )
    asking = next((module for module, need in needs.items() if need), None)
    if asking is not None:
        raise CalibrationError(
            f"{asking}: its method needs calibration data, and none was given; give a text or "
            "inputs, or use methods that need none (magnitude, rtn)"
        )
    return []


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
