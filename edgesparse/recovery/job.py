"""Which job kept state belongs to: everything but the allowance that decides what comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from edgesparse.journal.identity import code, source_digest
from edgesparse.model import CapturedModel, CompressedModel


def job(
    compressed: CompressedModel,
    teacher: CapturedModel,
    *,
    data: str,
    validation: str | None = None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the job as JSON values.

    Args:
        compressed: What is trained.
        teacher: What it learns from.
        data: Digest of what it is trained on.
        validation: Digest of what it is checked on.
        options: Whatever else the result depends on.
    """
    return {
        "model": {"sha256": packed_digest(compressed)},
        "teacher": {"sha256": source_digest(teacher)},
        "data": {"sha256": data},
        "validation": None if validation is None else {"sha256": validation},
        "options": dict(options),
        "code": code(),
    }


def packed_digest(compressed: CompressedModel) -> str:
    """Return the digest of all values of a packed model, and of how they are packed."""
    digest = hashlib.sha256()
    for name, packed in compressed.packed.items():
        digest.update(f"{name}{packed.spec.to_json()}".encode())
        for buffer, value in packed.buffers.items():
            digest.update(f"{buffer}{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    for name, kept in compressed.kept.items():
        digest.update(f"{name}{kept.dtype}{tuple(kept.shape)}".encode())
        raw = kept.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
