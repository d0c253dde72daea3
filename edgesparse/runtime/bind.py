"""Put a payload in the place of one parameter, so that the owner's code need not know.

The owner becomes an instance of a subclass of its own class in which the parameter's attribute is
a property. Code that reads ``module.weight`` keeps working, wherever it stands. Where the owner's
forward is exactly that of ``nn.Linear`` or ``nn.Embedding`` it is replaced by the payload's own
product or look-up, which never makes the dense weight.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

from torch import Tensor, nn


class Payload(Protocol):
    """What stands for a weight."""

    def weight(self) -> Tensor:
        """Return the weight, shape as captured."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias`` for x of shape (..., K)."""

    def embedding(self, indices: Tensor) -> Tensor:
        """Return the rows ``indices`` of the weight, shape (*indices.shape, K)."""


def bind(owner: nn.Module, leaf: str, payload: nn.Module) -> None:
    """Make ``owner.<leaf>`` come from ``payload``, in place.

    The payload is registered as the submodule ``<leaf>_payload``; registering the same payload
    with several owners is how tied weights stay one.
    """
    owner._parameters.pop(leaf)
    owner.register_module(f"{leaf}_payload", payload)
    owner.__class__ = _bound_class(type(owner), leaf)  # type: ignore[arg-type]  # classes do hash


@cache
def _bound_class(base: type[nn.Module], leaf: str) -> type[nn.Module]:
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
