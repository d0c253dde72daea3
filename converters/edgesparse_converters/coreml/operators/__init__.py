"""Every operator the host executor knows, by family."""

from edgesparse_converters.coreml.operators import (
    constants,
    convolution,
    elementwise,
    indexing,
    linear,
    reduction,
    shaping,
)
from edgesparse_converters.coreml.operators.call import Call, CallError, Operator, Result

OPERATORS: dict[str, Operator] = {
    **constants.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **reduction.OPERATORS,
    **shaping.OPERATORS,
}

__all__ = ["OPERATORS", "Call", "CallError", "Operator", "Result"]
