"""How many bytes of results are alive at once in a forward pass, found without weights.

The skeleton runs once on the meta device: every operation says how large its results are, and a
result ends when nobody refers to it any more, as it does in a real run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from edgesparse.capture.structure import on_meta
from edgesparse.model import CapturedModel

_logger = logging.getLogger(__name__)


def peak_activation_nbytes(captured: CapturedModel) -> int | None:
    """Return the most bytes of results alive at once, as float32, on the example inputs.

    None when the model cannot run on shapes alone, because its control flow needs values.
    """
    module = on_meta(captured.skeleton()).float()
    inputs = tree_map_only(Tensor, lambda t: t.to("meta"), dict(captured.example_inputs))
    return trace_peak(module, inputs)


def trace_peak(module: nn.Module, inputs: Mapping[str, Any]) -> int | None:
    """Return the peak of a module and inputs that are on the meta device already."""
    meter = _Meter()
    try:
        with torch.no_grad(), torch.device("meta"), meter:
            module(**inputs)
    except Exception as error:  # whatever a stranger's forward raises on shapes without values
        _logger.debug("the forward pass cannot run on the meta device: %s", error)
        return None
    return meter.peak_nbytes


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that operations make, for as long as somebody holds them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_nbytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        known = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: held for key, held in self._alive.items() if not _is_dead(held[0])}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := id_of(tensor)) not in known:
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[key] = (reference, storage.nbytes())
        self.peak_nbytes = max(self.peak_nbytes, sum(nbytes for _, nbytes in self._alive.values()))
        return result


def _is_dead(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


def id_of(tensor: Tensor) -> int:
    """Return what identifies the memory a tensor lives in; a view has that of its base."""
    return int(tensor.untyped_storage()._cdata)
