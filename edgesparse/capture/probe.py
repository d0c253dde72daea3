"""Run a skeleton once on its example inputs to see which of its layers are called.

A module may read the weight of a submodule without calling it (``F.linear(x, self.head.weight)``).
Hooks never see such a layer, so its weight cannot be calibrated. The pass runs on the meta
device: shapes only, no arithmetic, no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from edgesparse.capture.structure import copy_structure, on_meta

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_logger = logging.getLogger(__name__)


def uncalled_modules(skeleton: nn.Module, inputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the paths of layers that a forward pass on ``inputs`` never calls.

    Empty when the pass cannot run on the meta device, for example because control flow depends on
    values: then every layer is taken to be called.
    """
    module = on_meta(copy_structure(skeleton))
    called: set[int] = set()
    layers = {path: m for path, m in module.named_modules() if isinstance(m, _LAYERS)}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: called.add(id(layer)))
        for layer in layers.values()
    ]
    meta_inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), dict(inputs))
    try:
        with torch.no_grad(), torch.device("meta"):
            module(**meta_inputs)
    except Exception as error:  # whatever a stranger's forward raises on shapes without values
        _logger.debug("the forward pass cannot run on the meta device: %s", error)
        return frozenset()
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(path for path, layer in layers.items() if id(layer) not in called)
