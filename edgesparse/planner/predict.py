"""Bytes of files before anything is compressed: the packed weights, and a target's artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from edgesparse.budget import Budget
from edgesparse.packed import FORMATS
from edgesparse.planner.types import Plan, TensorPlan
from edgesparse.store.layout import Entry, packed_entries, safetensors_nbytes

FilePrediction = Callable[[Sequence[TensorPlan]], int]


def weights_nbytes(entries: Sequence[TensorPlan]) -> int:
    """Return the bytes of ``weights.safetensors``, header included.

    Exact for dense layouts, N:M and tensors as they are; the expectation for a random mask
    otherwise.
    """
    return safetensors_nbytes(entry for planned in entries for entry in _file_entries(planned))


def _file_entries(planned: TensorPlan) -> Iterator[Entry]:
    tensor, spec = planned.tensor, planned.spec
    if spec is None:
        yield Entry(tensor.name, tensor.dtype, tensor.shape)
    else:
        buffers = FORMATS.get(spec.name).predict_nbytes(spec, tensor.shape)
        yield from packed_entries(tensor.name, buffers)


def artifact_prediction(target: str) -> FilePrediction:
    """Return what predicts the bytes of a target's file.

    Raises:
        UnknownName: No such target.
    """
    from edgesparse.exporting import EXPORTERS

    exporter = EXPORTERS.get(target)
    return lambda entries: exporter.predict_nbytes(_bare_plan(entries, target))


def _bare_plan(entries: Iterable[TensorPlan], target: str) -> Plan:
    return Plan(tensors=tuple(entries), nbytes=0, budget=Budget(), target=target)
