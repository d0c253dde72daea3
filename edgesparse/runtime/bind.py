"""Put a payload in the place of one parameter, so that the owner's code need not know.

The owner becomes an instance of a subclass of its own class in which the parameter's attribute is
a property. Code that reads ``module.weight`` keeps working, wherever it stands. Where the owner's
forward is exactly that of ``nn.Linear`` or ``nn.Embedding`` it is replaced by the payload's own
product or look-up, which need not make the dense weight; that of a 1x1 convolution is where it is
asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor, nn

from edgesparse.pointwise import at_every_place, is_pointwise


class Payload(Protocol):
    """What stands for a weight."""

    def weight(self) -> Tensor:
        """Return the weight, shape as captured."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias`` for x of shape (..., K)."""

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices`` of the weight, shape (*indices.shape, K)."""


def bind(owner: nn.Module, leaf: str, payload: nn.Module, *, as_linear: bool = False) -> None:
    """Make ``owner.<leaf>`` come from ``payload``, in place.

    The payload is registered as the submodule ``<leaf>_payload``; registering the same payload
    with several owners is how tied weights stay one.

    Args:
        owner: The module that has the parameter.
        leaf: The parameter's name there.
        payload: A ``Payload``.
        as_linear: Compute a 1x1 convolution as the payload's linear product at every place. A graph
            for a converter keeps the convolution.
    """
    owner._parameters.pop(leaf)
    owner.register_module(f"{leaf}_payload", payload)
    pointwise = as_linear and type(owner) in (nn.Conv1d, nn.Conv2d) and is_pointwise(owner)
    owner.__class__ = _bound_class(type(owner), leaf, pointwise)  # type: ignore[arg-type]  # classes do hash


@cache
def _bound_class(base: type[nn.Module], leaf: str, pointwise: bool) -> type[nn.Module]:
    """Return the subclass of ``base`` whose ``leaf`` is computed."""
    slot = f"{leaf}_payload"

    def read(self: nn.Module) -> Tensor:
        payload: Payload = self._modules[slot]  # type: ignore[assignment]
        return payload.weight()

    members: dict[str, object] = {leaf: property(read), "__module__": base.__module__}
    if leaf == "weight" and base.forward is nn.Linear.forward:
        members["forward"] = _linear_forward
    if leaf == "weight" and base.forward is nn.Embedding.forward:
        members["forward"] = _embedding_forward
    if leaf == "weight" and pointwise:
        members["forward"] = _pointwise_forward
    return type(f"Packed{base.__name__}", (base,), members)


# The argument is called as torch calls it: some callers pass it by name.
def _linear_forward(self: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002
    payload: Payload = self._modules["weight_payload"]  # type: ignore[assignment]
    return payload.linear(input, self.bias)


def _embedding_forward(self: nn.Embedding, input: Tensor) -> Tensor:  # noqa: A002
    if self.max_norm is not None:
        return nn.Embedding.forward(self, input)
    payload: Payload = self._modules["weight_payload"]  # type: ignore[assignment]
    return payload.embedding(input)


def _pointwise_forward(self: nn.Conv1d | nn.Conv2d, input: Tensor) -> Tensor:  # noqa: A002
    payload: Payload = self._modules["weight_payload"]  # type: ignore[assignment]
    return at_every_place(lambda x: payload.linear(x, self.bias), input, self.stride)
