"""Build runnable modules from a compressed model, which itself is never changed.

Three of them, for three readers of the same numbers:

    build_packed      computes from the packed bytes: evaluation and generation on this host
    build_decoded     an ordinary float module with the decoded weights: recovery, any other tool
    build_exportable  each packed weight is a traceable op: the converters read mask, codes, scales

All start from the captured structure on the meta device, so no dense copy of the model is made.
A packed parameter is found by every name it has; tied names share one payload.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

import torch
from torch import Tensor, nn

from edgesparse.capture.assemble import place
from edgesparse.errors import SourceError
from edgesparse.model import CompressedModel
from edgesparse.packed import FORMATS, PackedTensor
from edgesparse.runtime.bind import bind
from edgesparse.runtime.payload import DecodedSlot, ExportablePayload, PackedPayload


def build_packed(compressed: CompressedModel, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a module in evaluation mode that computes from the packed bytes.

    Linear layers, 1x1 convolutions and embeddings run on the packed kernels. Any other owner of a
    packed weight (a larger convolution, a traced graph) decodes it when it reads it; of those at
    most one weight is held decoded at a time.

    Args:
        compressed: The model; its buffers are shared, not copied.
        dtype: Floating type of the tensors that were kept; activations follow it.

    Raises:
        SourceError: The structure and the stored tensors do not belong together.
    """
    slot = DecodedSlot()
    return _build(compressed, dtype, lambda name, packed: PackedPayload(name, packed, slot, dtype))


def build_decoded(
    compressed: CompressedModel,
    *,
    dtype: torch.dtype = torch.float32,
    hollow: Container[str] = frozenset(),
) -> nn.Module:
    """Return an ordinary module in evaluation mode whose weights are the decoded values.

    Every parameter is a copy of its own: the caller may train it. Tied weights stay tied.

    Args:
        compressed: The model.
        dtype: Floating type of all tensors.
        hollow: Names of packed tensors that the caller will put something else in the place of:
            they get their shapes but no memory, all zeros.

    Raises:
        SourceError: The structure and the stored tensors do not belong together.
    """
    module = compressed.captured.skeleton()
    for name, packed in compressed.packed.items():
        if name in hollow:
            value = torch.zeros((), dtype=dtype).expand(packed.shape)
        else:
            # Not ``packed.decode()``, whose codes would stay.
            codes = FORMATS.get(packed.spec.name).unpack(packed)
            value = torch.from_numpy(codes.decode()).to(dtype)
        place(module, _names(compressed, name), value)
    return _finish(module, compressed, dtype)


def build_exportable(
    compressed: CompressedModel, *, dtype: torch.dtype = torch.float32, hollow: bool = False
) -> nn.Module:
    """Return a module in evaluation mode for ``torch.export``.

    Each packed weight is computed where it is read, by ``edgesparse::dequantize`` or, for float16
    values, ``edgesparse::sparse_values``: a converter finds mask, codes and scales as constant
    inputs of that node, with the tensor's name as its last argument.

    Args:
        compressed: The model.
        dtype: Floating type of the weights and of the tensors that were kept.
        hollow: Give codes and masks their shapes but no memory, all zeros: for a converter that
            writes the numbers later, weight by weight.

    Raises:
        SourceError: The structure and the stored tensors do not belong together.
    """

    def payload(name: str, packed: PackedTensor) -> ExportablePayload:
        if not hollow:
            return ExportablePayload(name, packed.codes, dtype)
        # Not ``packed.codes``, which would stay.
        made = ExportablePayload(name, FORMATS.get(packed.spec.name).unpack(packed), dtype)
        made.empty()
        return made

    return _build(compressed, dtype, payload)


def _build(
    compressed: CompressedModel,
    dtype: torch.dtype,
    payload: Callable[[str, PackedTensor], PackedPayload | ExportablePayload],
) -> nn.Module:
    """Build the structure with a payload in the place of every packed parameter."""
    module = compressed.captured.skeleton()
    for name, packed in compressed.packed.items():
        shared = payload(name, packed)
        for owner, leaf in _owners(module, _names(compressed, name)):
            bind(owner, leaf, shared, as_linear=isinstance(shared, PackedPayload))
    return _finish(module, compressed, dtype)


def _finish(module: nn.Module, compressed: CompressedModel, dtype: torch.dtype) -> nn.Module:
    """Place the kept tensors, as ``dtype`` where they float; check that all have a value."""
    for name, tensor in compressed.kept.items():
        value = tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()
        place(module, _names(compressed, name), value)
    left = [name for name, tensor in _state(module) if tensor.is_meta]
    if left:
        raise SourceError(
            f"{len(left)} tensors of the model have no stored value, first {left[0]}; the weights "
            "and the structure do not belong together: compress again from the source"
        )
    return module.eval().requires_grad_(False)


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _names(compressed: CompressedModel, name: str) -> tuple[str, ...]:
    """Return every name of a stored tensor, its own first."""
    tensor = compressed.captured.by_name.get(name)
    if tensor is None:
        raise SourceError(f"{name}: stored, but the model has no such tensor; compress again")
    return (tensor.name, *tensor.aliases)


def _owners(module: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[nn.Module, str]]:
    """Yield (owner, attribute) of each distinct place that holds one of ``names``."""
    seen = set()
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if (id(owner), leaf) not in seen:
            seen.add((id(owner), leaf))
            yield owner, leaf
