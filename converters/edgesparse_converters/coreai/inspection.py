"""What is in an asset, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesparse.exporting import nbytes_on_disk
from edgesparse_converters.coreai.export import RECORD
from edgesparse_converters.coreai.session import describe, parse_type
from edgesparse_converters.coreml import blob

NUMBERS = ("indices", "numbers")


def inspect(path: Path) -> dict[str, Any]:
    """Return functions, operators and weights of an asset.

    Raises:
        SourceError: Not an asset, or damaged.
    """
    described = describe(path)
    record = described["metadata"].get(RECORD)
    record = record if isinstance(record, dict) else {}
    return {
        "target": "coreai",
        "nbytes": nbytes_on_disk(path),
        "functions": described["functions"],
        "operators": described["operators"],
        "weights": [
            _weight(parts, described["constants"], record) for parts in described["weights"]
        ],
        "metadata": {RECORD: str(record.get("version", ""))},
    }


def _weight(
    parts: Mapping[str, str], constants: Mapping[str, Mapping[str, str]], record: Mapping[str, Any]
) -> dict[str, Any]:
    types = {part: parse_type(constants[value]["type"]) for part, value in parts.items()}
    sizes = {part: math.prod(size or 1 for size in kind.shape) for part, kind in types.items()}
    numbers = next((part for part in NUMBERS if part in parts), next(iter(parts)))
    shape = types["mask" if "mask" in parts else numbers].shape
    whole = math.prod(size or 1 for size in shape)
    nbytes = sum(blob.nbytes(kind.dtype, sizes[part]) for part, kind in types.items())
    stored = constants[parts[numbers]]["name"].partition(".")[0]
    return {
        "name": str(record.get("weights", {}).get(stored, stored)),
        "constants": " + ".join(parts),
        "shape": list(shape),
        "dtype": types[numbers].dtype,
        "sparsity": round(1 - sizes[numbers] / whole, 6) if whole else 0.0,
        "nbytes": nbytes,
        "bits_per_weight": round(8 * nbytes / whole, 4) if whole else 0.0,
    }
