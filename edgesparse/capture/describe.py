"""What each tensor of a module is for, found from the modules that own it, never from its name.

A tensor is described once, under its first name in the state dict; further names are aliases. When
several modules share it (a tied output head), it can be packed only if every one of them computes
with it as a plain matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from edgesparse.capture.experts import is_unstacked
from edgesparse.errors import SourceError
from edgesparse.model import DTYPE_NBYTES, TensorInfo, TensorKind
from edgesparse.pointwise import is_patchwise

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.SyncBatchNorm,
)  # fmt: skip

Use = tuple[TensorKind, str]
"""What one module does with a tensor, and why it cannot be packed there ("" if it can)."""


def describe(
    module: nn.Module,
    *,
    uncalled: frozenset[str] = frozenset(),
    bypassed: frozenset[str] = frozenset(),
) -> tuple[TensorInfo, ...]:
    """Return every distinct tensor of ``module``, in state-dict order.

    Args:
        module: Any module; its parameters may be on the meta device.
        uncalled: Paths of layers that a forward pass does not call. A weight that no called layer
            has stays as it is: somebody may read it directly.
        bypassed: Paths of layers whose weight is known to be read directly, called or not.

    Raises:
        SourceError: A tensor of a type this package does not know.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise SourceError(
                f"{name}: extra state of a module, which cannot be stored as a tensor"
            )
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    uses, patches = _uses(module, uncalled, bypassed), _patches(module)
    return tuple(
        _info(names[key], tensor, uses.get(key, []), patchwise=key in patches)
        for key, tensor in tensors.items()
    )


def tensor_dtype(name: str, tensor: torch.Tensor) -> str:
    """Return the NumPy-style name of a tensor's type.

    Raises:
        SourceError: It is none of those that can be stored.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPE_NBYTES:
        raise SourceError(
            f"{name}: dtype {dtype} is not known; known: {', '.join(DTYPE_NBYTES)}. Convert the "
            "model to one of them first"
        )
    return dtype


def _patches(module: nn.Module) -> set[int]:
    """Return the kernels, by ``id``, that only convolutions have that see patches side by side."""
    owners: dict[int, list[bool]] = {}
    for child in module.modules():
        for _, tensor in _own_tensors(child):
            is_kernel = tensor is getattr(child, "weight", None) and is_patchwise(child)
            owners.setdefault(id(tensor), []).append(is_kernel)
    return {key for key, kernels in owners.items() if all(kernels)}


def _info(
    names: list[str], tensor: torch.Tensor, uses: list[Use], *, patchwise: bool
) -> TensorInfo:
    kinds = {kind for kind, _ in uses} - {TensorKind.OTHER}
    kind = TensorKind.OTHER
    if kinds:
        kind = TensorKind.EMBEDDING if TensorKind.EMBEDDING in kinds else sorted(kinds)[0]
    reasons = [reason for _, reason in uses if reason] or ([] if uses else ["a buffer"])
    if not reasons and (tensor.dim() < 2 or not tensor.numel()):
        reasons = [f"shape {tuple(tensor.shape)} is no matrix"]
    if not reasons and not tensor.is_floating_point():
        reasons = ["not floating point"]
    return TensorInfo(
        name=names[0],
        kind=kind,
        shape=tuple(tensor.shape),
        dtype=tensor_dtype(names[0], tensor),
        aliases=tuple(names[1:]),
        compressible=not reasons,
        reason=reasons[0] if reasons else "",
        patchwise=patchwise,
    )


def _uses(
    module: nn.Module, uncalled: frozenset[str], bypassed: frozenset[str]
) -> dict[int, list[Use]]:
    """Return what is done with each tensor, by ``id``."""
    called: dict[int, list[Use]] = {}
    others: dict[int, list[Use]] = {}
    bypassed |= {
        f"{path}.out_proj".lstrip(".")
        for path, child in module.named_modules()
        if isinstance(child, nn.MultiheadAttention)
    }
    routed = tuple(f"{path}." for path, child in module.named_modules() if is_unstacked(child))
    for path, child in module.named_modules():
        for leaf, tensor in _own_tensors(child):
            kind, reason = _use(child, leaf, tensor)
            if kind is TensorKind.LINEAR and path.startswith(routed):
                kind = TensorKind.EXPERT
            if not reason and path in uncalled | bypassed:
                kind, reason = TensorKind.OTHER, "read by another module than its own"
            uses = others if path in uncalled - bypassed else called
            uses.setdefault(id(tensor), []).append((kind, reason))
    return others | called


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield leaf, tensor


def _use(module: nn.Module, leaf: str, tensor: torch.Tensor) -> Use:
    """Return what ``module`` does with its own tensor ``leaf``."""
    if isinstance(module, _NORMS) or _is_norm_by_another_name(module):
        return TensorKind.NORM, "a normalization"
    if leaf != "weight":
        return TensorKind.OTHER, "a bias" if leaf == "bias" else _functional(module, tensor)
    if isinstance(module, nn.Linear):
        return TensorKind.LINEAR, ""
    if isinstance(module, _TRANSPOSED):
        return TensorKind.CONV, "a transposed convolution: its rows are inputs"
    if isinstance(module, _CONVS):
        grouped = "a grouped convolution: its rows see different inputs"
        return TensorKind.CONV, grouped if module.groups > 1 else ""
    if isinstance(module, nn.Embedding):
        renormed = "an embedding with max_norm changes its own weight"
        return TensorKind.EMBEDDING, renormed if module.max_norm is not None else ""
    if isinstance(module, nn.EmbeddingBag):
        return TensorKind.EMBEDDING, "an embedding bag, for which there is no packed module"
    return TensorKind.OTHER, _functional(module, tensor)


def _functional(module: nn.Module, tensor: torch.Tensor) -> str:
    if isinstance(tensor, nn.Parameter):
        return f"used by {type(module).__name__} itself, which is no linear, conv or embedding"
    return "a buffer"


def _is_norm_by_another_name(module: nn.Module) -> bool:
    """Whether the module's class says it is a norm and all it owns are vectors.

    Model libraries write their own RMSNorm and LayerNorm, which inherit from ``nn.Module`` alone.
    """
    named = any("norm" in base.__name__.lower() for base in type(module).__mro__)
    own = list(_own_tensors(module))
    return named and bool(own) and all(tensor.dim() <= 1 for _, tensor in own)
