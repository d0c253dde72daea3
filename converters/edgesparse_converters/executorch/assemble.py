"""The module that is exported, and its twin that computes the same on the host in torch.

Both start from the structure with all weights decoded; every use of a packed tensor with a form of
its own is then replaced. Nothing the compressed model holds is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgesparse.batchnorm import absorb
from edgesparse.errors import Unsupported
from edgesparse.packed import Codes, PackedTensor
from edgesparse.pointwise import is_patchwise, is_pointwise
from edgesparse.runtime.modules import build_decoded
from edgesparse_converters.executorch.arithmetic import (
    DynamicLinear,
    PackedReference,
    activations_for,
)
from edgesparse_converters.executorch.embedding import QuantizedEmbedding
from edgesparse_converters.executorch.lowering import Form, Use
from edgesparse_converters.executorch.operators import (
    PackedEmbedding,
    PackedLinear,
    Patchwise,
    Pointwise,
)
from edgesparse_converters.executorch.quiet import quiet
from edgesparse_converters.executorch.routing import route_experts

if TYPE_CHECKING:
    from edgesparse.model import CompressedModel

Replace = Callable[[nn.Module, Use, PackedTensor], nn.Module]


def build_module(
    compressed: CompressedModel, uses: Iterable[Use], *, activations: str
) -> nn.Module:
    """Return the float32 module whose graph becomes the program.

    Args:
        compressed: The packed model.
        uses: What becomes of each packed tensor.
        activations: How activations enter our operators, ``int8``, ``int16`` or ``float32``.

    Raises:
        Unsupported: A weight whose scales the target would round.
    """
    uses = tuple(uses)
    # What gets a form of its own is never decoded: a large model has no float copy here.
    floats = {use.tensor for use in uses if use.form is Form.FLOAT32}
    hollow = {use.tensor for use in uses} - floats
    export = partial(_exported, activations=activations)
    module = _build(compressed, uses, export, hollow=hollow)
    route_experts(module)
    return module


def build_reference(
    compressed: CompressedModel, uses: Iterable[Use], *, activations: str
) -> nn.Module:
    """Return the module that computes in torch what the program computes in its runtime."""
    return _build(compressed, uses, partial(_reference, activations=activations))


def _build(
    compressed: CompressedModel,
    uses: Iterable[Use],
    replace: Replace,
    *,
    hollow: Container[str] = frozenset(),
) -> nn.Module:
    module = build_decoded(compressed, hollow=hollow)
    # What a folded norm still adds is a bias: no operator, and no delegate, for that alone.
    absorb(module, compressed.captured)
    with torch.no_grad():
        for use in uses:
            owner = module.get_submodule(use.module)
            new = replace(owner, use, compressed.packed[use.tensor])
            if new is not owner:
                _keep_sizes(owner, new)
                _set_submodule(module, use.module, new)
    return module


_SIZES = (
    "in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx", "in_channels",
    "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
)  # fmt: skip


def _keep_sizes(owner: nn.Module, new: nn.Module) -> None:
    """Copy the numbers that models read from their layers, such as those that pad by themselves."""
    for name in _SIZES:
        if hasattr(owner, name):
            setattr(new, name, getattr(owner, name))
    weight = getattr(owner, "weight", None)
    if isinstance(weight, Tensor) and not hasattr(new, "weight"):
        # Models look up its type, shape and device; what would compute with it becomes NaN.
        new.weight = torch.full((), torch.nan).expand(weight.shape)


def _set_submodule(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


def _exported(owner: nn.Module, use: Use, packed: PackedTensor, *, activations: str) -> nn.Module:
    if use.form is Form.FLOAT32:
        return owner
    if use.form is Form.PACKED:
        if isinstance(owner, nn.Embedding):
            return PackedEmbedding(packed)
        wanted = activations_for(packed.spec, packed.shape, activations)
        return _in_place_of(owner, PackedLinear(packed, _bias(owner), wanted))
    if isinstance(owner, nn.Embedding):
        return QuantizedEmbedding(packed.codes)
    setattr(owner, use.attribute, nn.Parameter(xnnpack_weight(packed.codes, use.name), False))
    return owner


def _reference(owner: nn.Module, use: Use, packed: PackedTensor, *, activations: str) -> nn.Module:
    if isinstance(owner, nn.Embedding):
        return owner
    if use.form in (Form.XNNPACK4, Form.XNNPACK8):
        return DynamicLinear(torch.from_numpy(packed.decode()), _bias(owner))
    if use.form is Form.PACKED:
        wanted = activations_for(packed.spec, packed.shape, activations)
        return _in_place_of(owner, PackedReference(packed.codes, _bias(owner), wanted))
    return owner


def _in_place_of(owner: nn.Module, linear: nn.Module) -> nn.Module:
    """Return ``linear`` in the place of ``owner``, which may be a convolution that is one."""
    if is_patchwise(owner):
        return Patchwise(linear, tuple(owner.kernel_size))
    if is_pointwise(owner):
        return Pointwise(linear, tuple(owner.stride))
    return linear


def _bias(owner: nn.Module) -> Tensor | None:
    return owner.bias if isinstance(owner.bias, Tensor) else None


def xnnpack_weight(codes: Codes, name: str) -> Tensor:
    """Return codes and scales as the tensor that XNNPACK's partitioner takes as they are.

    Args:
        codes: 2-D codes of at most 8 bits.
        name: Named in the message.

    Raises:
        Unsupported: A scale that bfloat16 would round: XNNPACK stores scales of groups so.
    """
    with quiet():
        from torchao.quantization import IntxUnpackedToInt8Tensor
        from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
            IntxUnpackedToInt8TensorActivationQuantization as Activations,
        )

    values, scales = codes.values, torch.from_numpy(codes.scales.astype("float32"))
    group = min(codes.group_size, values.shape[1])
    if not torch.equal(scales.bfloat16().float(), scales):
        raise Unsupported(
            f"{name}: a scale has more digits than bfloat16, which XNNPACK would round, so the "
            "file would not hold these weights; compress again with this version"
        )
    weight: Tensor = IntxUnpackedToInt8Tensor(
        qdata=torch.from_numpy(values.copy()),
        scale=scales,
        # XNNPACK ignores zero points of 4-bit weights; ours are always zero.
        zero_point=torch.zeros_like(scales, dtype=torch.int8),
        target_dtype=getattr(torch, "int8" if codes.bits == 8 else "int4"),
        block_size=(1, group),
        dtype=torch.float32,
        activation_quantization=Activations.INT8_ASYM_PER_TOKEN,
    )
    return weight
