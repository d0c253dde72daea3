"""Copies of a module that have its structure but none of its weights."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn

from edgesparse.errors import SourceError


def copy_structure(module: nn.Module) -> nn.Module:
    """Return a deep copy in evaluation mode whose parameters are on the meta device.

    Buffers are real copies. Parameters that share storage become one parameter: tied.
    """
    memo: dict[int, Any] = {}
    metas: dict[tuple[int, tuple[int, ...], tuple[int, ...]], nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.device.type not in ("cpu", "meta"):
            raise SourceError(f"{name} is on {parameter.device}; move the module to the CPU first")
        # Without storage (meta, empty) the address says nothing: identity it is.
        address = parameter.data_ptr() if parameter.device.type == "cpu" else 0
        key = (address or -id(parameter), tuple(parameter.shape), parameter.stride())
        if key not in metas:
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            metas[key] = nn.Parameter(empty, requires_grad=False)
        memo[id(parameter)] = metas[key]
    try:
        with warnings.catch_warnings():
            # torch copies the tree specs of its own graph modules by a deprecated class.
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            copied = copy.deepcopy(module, memo)
    except (TypeError, RuntimeError) as error:
        raise SourceError(
            f"{type(module).__name__} cannot be copied: {error}; give a factory "
            "'package.module:function' instead"
        ) from None
    return copied.eval()


def on_meta(module: nn.Module) -> nn.Module:
    """Move the buffers of a skeleton to the meta device, in place; ties are kept."""
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to("meta")
    return module
