"""Shape expressions of a ``.pt2`` file: arithmetic on symbols, or they are not evaluated."""

from __future__ import annotations

import ast
import re

from edgesparse.errors import SourceError

_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Max", "Min", "Mod", "PythonMod",
    "FloorDiv", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt",
    "IntTrueDiv", "FloatTrueDiv", "ToFloat", "Identity", "ModularIndexing", "Where",
    "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "floor", "ceiling",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural"}
_MAX_EXPONENT = 8
_MAX_NESTED_POWERS = 3
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.Compare, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
_MAX_LENGTH = 20_000
_MAX_NUMBER = 1 << 63


def check_expression(text: str, where: str) -> None:
    """Refuse an expression that is anything but sums, products, quotients and comparisons.

    Powers are held small: a short text could ask for a number of a billion digits.

    Raises:
        SourceError: It is; ``where`` begins the message.
    """
    refusal = SourceError(f"{where}: {text[:80]!r} is no shape expression")
    if len(text) > _MAX_LENGTH:
        raise refusal
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal from None
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or not _is_harmless(node):
            raise refusal
        if _is_power(node) and sum(map(_is_power, ast.walk(node))) > _MAX_NESTED_POWERS:
            raise refusal


def _is_power(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _POWERS
    )


def _has_small_exponent(power: ast.Call) -> bool:
    match power.args:
        case [_, ast.Call(func=ast.Name(id="Integer"), args=[ast.Constant(value=int(n))])]:
            return 0 <= n <= _MAX_EXPONENT
        case [_, ast.Call(args=[ast.UnaryOp(operand=ast.Constant(value=1))])]:
            return True
    return False


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if _is_power(node):
            return _has_small_exponent(node) and not node.keywords
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS | _POWERS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.keyword):
        return node.arg in ("positive", "integer", "nonnegative", "real", "nonzero")
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _SYMBOL.fullmatch(node.value) is not None
        return isinstance(node.value, (bool, int, float)) and abs(node.value) <= _MAX_NUMBER
    return True
