"""Look at every weight with the statistics of its inputs; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from edgesparse.calibrate.driver import Resources, calibrate
from edgesparse.calibrate.inputs import as_matrix
from edgesparse.calibrate.record import disable_cache
from edgesparse.calibrate.replay import Room
from edgesparse.calibrate.statistics import Statistic, Statistics
from edgesparse.calibrate.windows import Batch
from edgesparse.model import CapturedModel, TensorInfo

See = Callable[[TensorInfo, Tensor, Statistics], None]
"""Receives a tensor, its weight as float32 [N, K] and the statistics of its inputs."""


def visit(
    captured: CapturedModel,
    needs: Mapping[str, frozenset[Statistic]],
    batches: Sequence[Batch],
    see: See,
    *,
    device: torch.device,
) -> None:
    """Call ``see`` for every tensor in ``needs``, in running order, on the dense model's inputs.

    Args:
        captured: The model.
        needs: Tensor name → the statistics to gather for it.
        batches: Keyword arguments of forward passes.
        see: What looks at them.
        device: Where blocks run.

    Raises:
        CalibrationError: Activations that are not finite.
    """
    model = captured.loader().float()
    disable_cache(model)
    tensors = {module_of(model, captured.by_name[n]): captured.by_name[n] for n in needs}

    def look(modules: tuple[str, ...], statistics: Statistics) -> None:
        for module in modules:
            tensor = tensors[module]
            see(tensor, as_matrix(model.get_parameter(tensor.name).data), statistics)

    by_module = {module: needs[tensor.name] for module, tensor in tensors.items()}
    resources = Resources(device=device, room=Room.on(device))
    calibrate(model, batches, by_module, look, resources=resources)


def module_of(model: nn.Module, tensor: TensorInfo) -> str:
    """Return the module whose inputs a tensor is solved on: a linear before an embedding."""
    paths = [name.rpartition(".")[0] for name in (tensor.name, *tensor.aliases)]
    linear = [path for path in paths if not isinstance(model.get_submodule(path), nn.Embedding)]
    return (linear or paths)[0]
