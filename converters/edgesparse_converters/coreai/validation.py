"""The proof: an asset's weights read back bit for bit, and the asset executed by Core AI's runtime.

The reference is the packed model in torch, in float32, which is what the asset computes in. The
runtime is Apple's own, on this host's processor: an oracle that shares no code with this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgesparse.errors import SourceError
from edgesparse.verdict import LayerCheck, Verdict, describe_inputs, worst_outputs
from edgesparse_converters.coreai import session
from edgesparse_converters.coreai.export import STORED_NAME
from edgesparse_converters.coreml import validation as coreml
from edgesparse_converters.coreml.chains import Weight
from edgesparse_converters.coreml.comparison import compare
from edgesparse_converters.coreml.operators.constants import look_up, spread

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

Constants = Mapping[str, NDArray[Any]]
TOLERANCE = 1e-4


def validate(path: Path, compressed: CompressedModel, *, calls: int, seed: int) -> Verdict:
    """Compare an asset with the packed model it was made from.

    Raises:
        SourceError: Not an asset edgesparse wrote, damaged, or of another model.
    """
    described, constants = session.read_constants(path)
    drawn = coreml.draw_inputs(session.input_types(described), compressed, calls=calls, seed=seed)
    references = coreml.reference_outputs(compressed, drawn)
    return Verdict(
        path=path,
        target="coreai",
        layers=check_layers(compressed, described, constants),
        outputs=worst_outputs(session.run(path, drawn), references, tolerance=TOLERANCE),
        runtime="Core AI's runtime on this host's processor",
        notes=(describe_inputs(len(drawn), seed=seed),),
    )


def check_layers(
    compressed: CompressedModel, described: Mapping[str, Any], constants: Constants
) -> tuple[LayerCheck, ...]:
    """Compare every packed tensor with the weight of the asset that is nearest to it.

    Equal constants are stored once, under the name of one of the weights that have them, so that
    names only say where to look first. Which weight is used where, executing the asset shows.
    """
    checks = []
    for index, (name, packed) in enumerate(compressed.packed.items()):
        codes, error, lowering = packed.codes, float(np.inf), "not in the asset"
        own = {
            value
            for value, constant in described["constants"].items()
            if constant["name"].partition(".")[0] == STORED_NAME.format(index)
        }
        for stored in sorted(described["weights"], key=lambda w: own.isdisjoint(w.values())):
            weight = read_weight(name, {part: constants[v] for part, v in stored.items()})
            difference = compare(weight, codes)
            silent = difference.any and difference.max_abs == 0
            found = float(np.inf if silent else difference.max_abs)
            if found <= error:
                error, lowering = found, ", ".join(sorted(stored))
            if error == 0:
                break
        checks.append(LayerCheck(name=name, lowering=lowering, max_abs_error=error))
    return tuple(checks)


def read_weight(name: str, parts: Constants) -> Weight:
    """Return the weight whose constants are ``parts``.

    Args:
        name: Of the weight, for errors.
        parts: Its constants by what they are: ``mask``, ``numbers``, ``indices``, ``table``,
            ``scales``, ``zeros``.

    Raises:
        SourceError: Constants that contradict each other.
    """
    stored = parts.get("indices", parts.get("numbers"))
    if stored is None:
        raise SourceError(f"the asset has no numbers of {name}; it holds {', '.join(parts)}")
    mask = parts["mask"] != 0 if "mask" in parts else np.ones(stored.shape, np.bool_)
    try:
        codes = np.zeros(mask.shape, np.float32)
        if "table" in parts and parts["table"].ndim == mask.ndim + 2:
            places = np.zeros(mask.shape, np.int64)  # tables for blocks of the weight
            places[mask] = stored.reshape(-1)
            codes = np.where(mask, _entries(places, parts["table"]), np.float32(0))
        else:
            kept = _entries(stored, parts["table"]) if "table" in parts else stored
            codes[mask] = kept.reshape(-1)
        scales = _spread(parts["scales"], mask) if "scales" in parts else None
        if "zeros" in parts:
            codes = np.where(mask, codes - _spread(parts["zeros"], mask), np.float32(0))
    except (ValueError, KeyError, IndexError) as error:
        raise SourceError(f"{name}: its constants contradict each other: {error}") from None
    return Weight(
        name=name, operations=tuple(sorted(parts)), dtype=str(stored.dtype),
        mask=mask if "mask" in parts else None, codes=codes, scales=scales, nbytes=0,
    )  # fmt: skip


def _entries(indices: NDArray[Any], table: NDArray[Any]) -> NDArray[np.float32]:
    """Return the entry of a table for every index."""
    found = look_up(torch.from_numpy(indices.astype(np.int64)), torch.from_numpy(table.copy()))
    return found.float().numpy()


def _spread(blocks: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the number of its block for every element."""
    return spread(torch.from_numpy(blocks.astype(np.float32)), torch.Size(mask.shape)).numpy()
