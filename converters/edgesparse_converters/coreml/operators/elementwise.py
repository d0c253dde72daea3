"""Operators that treat every element by itself, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgesparse_converters.coreml.operators.call import (
    Call,
    CallError,
    Operator,
    broadcast_within_limits,
)


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.tensor())


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        x, y = call.tensor("x"), call.tensor("y")
        broadcast_within_limits(x.shape, y.shape)
        return function(x, y)

    return run


def real_div(call: Call) -> Tensor:
    """Divide; integers are divided towards zero, as Core ML does."""
    x, y = call.tensor("x"), call.tensor("y")
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def cast(call: Call) -> Tensor:
    """Cast; the declared type of the result does it, here only truth and truncation."""
    x, name = call.tensor(), call.text("dtype", "")
    if name == "bool":
        return x != 0
    if name.startswith(("int", "uint")):
        return x.to(torch.int64)
    return x.to(torch.float32)


def gelu(call: Call) -> Tensor:
    """Return x Φ(x), exact or one of two approximations."""
    x, mode = call.tensor(), call.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise CallError(f"gelu mode {mode!r}")
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def prelu(call: Call) -> Tensor:
    """Return x where positive, else x times the slope of its channel (axis 1)."""
    x = call.tensor()
    alpha = call.tensor("alpha").reshape(-1, *(1,) * (x.ndim - 2))
    return torch.where(x >= 0, x, x * alpha)


def select(call: Call) -> Tensor:
    """Return ``a`` where the condition holds, else ``b``."""
    condition, a, b = (call.tensor(name) for name in ("cond", "a", "b"))
    broadcast_within_limits(condition.shape, a.shape, b.shape)
    return torch.where(condition != 0, a, b)


def clip(call: Call) -> Tensor:
    """Return x limited to [alpha, beta]."""
    return call.tensor().clamp(call.number("alpha"), call.number("beta"))


def leaky_relu(call: Call) -> Tensor:
    """Return x where positive, else alpha x."""
    return functional.leaky_relu(call.tensor(), call.number("alpha", 0.01))


def elu(call: Call) -> Tensor:
    """Return x where positive, else alpha (exp x - 1)."""
    return functional.elu(call.tensor(), call.number("alpha", 1.0))


def sigmoid_hard(call: Call) -> Tensor:
    """Return alpha x + beta limited to [0, 1]."""
    line = call.number("alpha", 0.2) * call.tensor() + call.number("beta", 0.5)
    return line.clamp(0, 1)


def rsqrt(call: Call) -> Tensor:
    """Return 1 / sqrt(x + epsilon)."""
    return torch.rsqrt(call.tensor() + call.number("epsilon", 1e-12))


def log(call: Call) -> Tensor:
    """Return the logarithm of x + epsilon."""
    return torch.log(call.tensor() + call.number("epsilon", 1e-45))


def inverse(call: Call) -> Tensor:
    """Return 1 / (x + epsilon)."""
    return 1 / (call.tensor() + call.number("epsilon", 1e-4))


def linear_activation(call: Call) -> Tensor:
    """Return alpha x + beta."""
    return call.number("alpha", 1.0) * call.tensor() + call.number("beta", 0.0)


def scaled_tanh(call: Call) -> Tensor:
    """Return alpha tanh(beta x)."""
    return call.number("alpha", 1.0) * torch.tanh(call.tensor() * call.number("beta", 1.0))


def thresholded_relu(call: Call) -> Tensor:
    """Return x where it reaches alpha, else 0."""
    x = call.tensor()
    return torch.where(x >= call.number("alpha", 1.0), x, torch.zeros_like(x))


def threshold(call: Call) -> Tensor:
    """Return the larger of x and alpha."""
    return call.tensor().clamp(min=call.number("alpha"))


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "acos": torch.acos, "asin": torch.asin, "atan": torch.atan,
    "ceil": torch.ceil, "cos": torch.cos, "cosh": torch.cosh, "erf": torch.erf,
    "exp": torch.exp, "exp2": torch.exp2, "floor": torch.floor, "identity": torch.clone,
    "logical_not": torch.logical_not, "relu": torch.relu, "relu6": functional.relu6,
    "round": torch.round, "sigmoid": torch.sigmoid, "sign": torch.sign, "silu": functional.silu,
    "sin": torch.sin, "sinh": torch.sinh, "softplus": functional.softplus,
    "softsign": functional.softsign, "sqrt": torch.sqrt, "square": torch.square,
    "tan": torch.tan, "tanh": torch.tanh,
}  # fmt: skip

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "equal": torch.eq, "floor_div": torch.floor_divide, "greater": torch.gt,
    "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor, "maximum": torch.maximum, "minimum": torch.minimum,
    "mod": torch.remainder, "mul": torch.mul, "not_equal": torch.ne, "pow": torch.pow,
    "sub": torch.sub,
}  # fmt: skip

OPERATORS: dict[str, Operator] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    "cast": cast, "clip": clip, "elu": elu, "gelu": gelu, "inverse": inverse,
    "leaky_relu": leaky_relu, "linear_activation": linear_activation, "log": log,
    "prelu": prelu, "real_div": real_div, "rsqrt": rsqrt, "scaled_tanh": scaled_tanh,
    "select": select, "sigmoid_hard": sigmoid_hard, "threshold": threshold,
    "thresholded_relu": thresholded_relu,
}  # fmt: skip
