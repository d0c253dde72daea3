"""Which job a journal belongs to: everything that decides what comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edgesparse_kernels
import numpy as np
import torch

import edgesparse
from edgesparse.model import CapturedModel
from edgesparse.planner.types import Plan

_TOOLS = ("numpy", "torch")


def identity(
    captured: CapturedModel, plan: Plan, *, calibration: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the job as JSON values; two runs with equal ones make the same bytes.

    Args:
        captured: The source.
        plan: What is done to each tensor.
        calibration: Digest of the calibration data.
        options: Whatever else the result depends on.
    """
    own = plan.to_json()
    own.pop("dense_alternative", None)
    return {
        "source": {"location": captured.source.location, "sha256": source_digest(captured)},
        "plan": own,
        "calibration": {"sha256": calibration},
        "options": dict(options),
        "code": code(),
    }


def code() -> dict[str, str]:
    """Return what computes: the versions, and the digest of the sources."""
    own = {"edgesparse": edgesparse.__version__, "files": code_digest()}
    return own | {name: version(name) for name in _TOOLS}


def first_difference(then: object, now: object, path: str = "") -> str | None:
    """Return where two JSON values first differ, in words; None if they do not.

    Example:
        >>> first_difference({"plan": {"bits": 4}}, {"plan": {"bits": 3}})
        'plan.bits was 4 and is 3'
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            inner = f"{path}.{key}".lstrip(".")
            found = first_difference(then.get(key), now.get(key), inner)
            if found:
                return found
        return None
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        found_all = (first_difference(a, b, f"{path}[{i}]") for i, (a, b) in pairs)
        return next((found for found in found_all if found), None)
    return None if then == now else f"{path} was {_short(then)} and is {_short(now)}"


def source_digest(captured: CapturedModel) -> str:
    """Return the digest of the weights, of the tensors themselves where there are no files."""
    if captured.source.sha256:
        return captured.source.sha256
    digest, weights = hashlib.sha256(), captured.weights()
    for tensor in captured.tensors:
        value = weights[tensor.name].contiguous().reshape(-1)
        digest.update(f"{tensor.name}{tensor.dtype}{tensor.shape}".encode())
        digest.update(np.ascontiguousarray(value.view(torch.uint8).numpy()).data)
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """Return the digest of the sources of core and kernels: a solver changed is another job."""
    digest = hashlib.sha256()
    for package in (edgesparse, edgesparse_kernels):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
