"""Our operators as the exporter sees them, and the modules that call them.

``edgesparse::linear.activations`` is ``edgesparse::linear`` with one more argument: how activations
enter the product. Both it and ``edgesparse::embedding`` get the variants that write into ``out``,
which is what a program calls; the kernels behind those are in ``kernels/native/executorch``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgesparse.formats.operand import DTYPES
from edgesparse.packed import FORMATS, Codes, PackedTensor
from edgesparse.pattern import DENSE
from edgesparse.pointwise import at_every_patch, at_every_place
from edgesparse.runtime.arguments import PackedArguments, packed_arguments
from edgesparse_converters.executorch.arithmetic import packed_linear

LINEAR = "edgesparse::linear.activations_out"
EMBEDDING = "edgesparse::embedding.out"

_WEIGHT = "Tensor[] buffers, str format, SymInt[] shape, SymInt group_size"
_library = torch.library.Library("edgesparse", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _arguments in (
    ("linear.activations", f"Tensor x, {_WEIGHT}, str activations, Tensor? bias=None"),
    ("embedding", f"Tensor indices, {_WEIGHT}"),
):
    if _name != "embedding":  # the core defines that one
        _library.define(f"{_name}({_arguments}) -> Tensor")  # type: ignore[no-untyped-call]
    _out = f"{_name}_out" if "." in _name else f"{_name}.out"
    _schema = f"{_out}({_arguments}, *, Tensor(a!) out) -> Tensor(a!)"
    _library.define(_schema)  # type: ignore[no-untyped-call]


@torch.library.impl(_library, "linear.activations", "CPU")
def _linear(
    x: Tensor,
    buffers: Sequence[Tensor],
    format: str,  # noqa: A002 - the operator's argument, as graphs show it
    shape: Sequence[int],
    group_size: int,
    activations: str,
    bias: Tensor | None = None,
) -> Tensor:
    codes = buffers_to_codes(list(buffers), format, shape, group_size)
    return packed_linear(x, codes, bias, activations)


@torch.library.register_fake("edgesparse::linear.activations", lib=_library)
def _linear_shape(
    x: Tensor,
    buffers: Sequence[Tensor],
    format: str,  # noqa: A002
    shape: Sequence[int],
    group_size: int,
    activations: str,
    bias: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


def buffers_to_codes(
    buffers: list[Tensor], name: str, shape: Sequence[int], group_size: int
) -> Codes:
    """Unpack the weight whose buffers come first in ``buffers``, and take them off."""
    layout = FORMATS.get(name)
    spec = layout.spec(group_size=group_size, pattern=DENSE)
    arrays = {
        buffer_name: buffers.pop(0).detach().numpy().view(DTYPES[buffer_name])
        for buffer_name in layout.predict_nbytes(spec, tuple(shape))
    }
    return layout.unpack(PackedTensor(spec=spec, shape=tuple(shape), buffers=arrays))


class _Packed(nn.Module):
    """A packed weight, its bytes as buffers of the module: constants of the program."""

    def __init__(self, packed: PackedTensor) -> None:
        super().__init__()
        own: PackedArguments = packed_arguments(packed)
        self.format, self.shape, self.group_size = own.format, own.shape, own.group_size
        self.names = [f"packed_{i}" for i in range(len(own.buffers))]
        for name, buffer in zip(self.names, own.buffers, strict=True):
            self.register_buffer(name, buffer)

    @property
    def packed(self) -> list[Tensor]:
        """The buffers, in the order of the byte map."""
        return [self.get_buffer(name) for name in self.names]


class PackedLinear(_Packed):
    """A linear layer that computes from packed bytes.

    Args:
        packed: The weight.
        bias: float32 ``[N]`` or None.
        activations: ``int8``, ``int16`` or ``float32``.
    """

    def __init__(self, packed: PackedTensor, bias: Tensor | None, activations: str) -> None:
        super().__init__(packed)
        self.activations = activations
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 ``[..., N]`` for float32 ``[..., K]``."""
        y: Tensor = torch.ops.edgesparse.linear.activations(
            x, self.packed, self.format, self.shape, self.group_size, self.activations, self.bias
        )
        return y


class Pointwise(nn.Module):
    """A 1x1 convolution as a linear layer at every place.

    Args:
        linear: Takes ``[..., inputs]``, returns ``[..., outputs]``.
        stride: Steps along each dimension after the channels.
    """

    def __init__(self, linear: nn.Module, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.stride = linear, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, outputs, ...]`` for ``[B, inputs, ...]``."""
        return at_every_place(self.linear, x, self.stride)


class Patchwise(nn.Module):
    """A convolution whose kernel is its stride as a linear layer at every patch.

    Args:
        linear: Takes ``[..., inputs * prod(kernel)]``, returns ``[..., outputs]``.
        kernel: Size of a patch along each dimension after the channels.
    """

    def __init__(self, linear: nn.Module, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.linear, self.kernel = linear, kernel

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, outputs, ...]`` for ``[B, inputs, ...]``."""
        return at_every_patch(self.linear, x, self.kernel)


class PackedEmbedding(_Packed):
    """A lookup that decodes the rows it needs from packed bytes."""

    def forward(self, indices: Tensor) -> Tensor:
        """Return float32 ``[..., K]`` for integer ``indices [...]``."""
        rows: Tensor = torch.ops.edgesparse.embedding(
            indices, self.packed, self.format, self.shape, self.group_size
        )
        return rows
