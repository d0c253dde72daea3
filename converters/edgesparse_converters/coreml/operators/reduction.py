"""Reductions along axes, and normalisations built on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgesparse_converters.coreml.operators.call import Call, Operator


def _axes(call: Call, x: Tensor) -> list[int]:
    return call.integers("axes", list(range(x.ndim)))


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        x = call.tensor()
        axes = _axes(call, x)
        return function(x, axes, call.flag("keep_dims")) if axes else x

    return run


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        return function(call.tensor(), call.integer("axis", -1), keepdim=call.flag("keep_dims"))

    return run


def softmax(call: Call) -> Tensor:
    """Return softmax along one axis."""
    return torch.softmax(call.tensor(), call.integer("axis", -1))


def layer_norm(call: Call) -> Tensor:
    """Return x normalised over its axes, times gamma plus beta."""
    x = call.tensor()
    axes = _axes(call, x)
    centred = x - x.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    y = centred * torch.rsqrt(variance + call.number("epsilon", 1e-5))
    gamma, beta = call.optional("gamma"), call.optional("beta")
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def batch_norm(call: Call) -> Tensor:
    """Return x normalised per channel (axis 1) with stored mean and variance."""
    x = call.tensor()
    mean, variance = _channels(call.tensor("mean"), x), _channels(call.tensor("variance"), x)
    y = (x - mean) * torch.rsqrt(variance + call.number("epsilon", 1e-5))
    return _scaled(call, x, y)


def instance_norm(call: Call) -> Tensor:
    """Return x normalised per sample and channel over the other axes."""
    x = call.tensor()
    axes = list(range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    return _scaled(call, x, centred * torch.rsqrt(variance + call.number("epsilon", 1e-5)))


def l2_norm(call: Call) -> Tensor:
    """Return x divided by the 2-norm over its last three axes."""
    x = call.tensor()
    norm = x.square().sum((-3, -2, -1), keepdim=True) + call.number("epsilon", 1e-6)
    return x / norm.sqrt()


def cumsum(call: Call) -> Tensor:
    """Return running sums along an axis, from either end, with or without the element itself."""
    x, axis = call.tensor(), call.integer("axis", 0)
    x = x.flip(axis) if call.flag("reverse") else x
    y = x.cumsum(axis)
    y = y - x if call.flag("exclusive") else y
    return y.flip(axis) if call.flag("reverse") else y


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *(1,) * (x.ndim - 2))


def _scaled(call: Call, x: Tensor, y: Tensor) -> Tensor:
    gamma, beta = call.optional("gamma"), call.optional("beta")
    y = y if gamma is None else y * _channels(gamma, x)
    return y if beta is None else y + _channels(beta, x)


OPERATORS: dict[str, Operator] = {
    "reduce_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_mean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_max": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_prod": _reduction(_prod),
    "reduce_l1_norm": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "reduce_log_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "reduce_argmax": _arg(torch.argmax),
    "reduce_argmin": _arg(torch.argmin),
    "softmax": softmax,
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "cumsum": cumsum,
}
