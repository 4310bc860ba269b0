"""Arithmetic, and nothing else of Python."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from areal_mega.rollout.tools.tool import Tool, ToolError

# Longer numbers are no arithmetic but an attack on the machine.
_BITS = 4096
_LENGTH = 1000
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def evaluate(expression: str) -> str:
    """The value of an expression of numbers, ``+ - * / // % **`` and parentheses.

    Raises:
        ToolError: it is something else, or has no value that is worth writing out.
    """
    text = str(expression).replace("×", "*").replace("−", "-").replace("^", "**").strip().removesuffix("=")
    if len(text) > _LENGTH:
        raise ToolError(f"the expression is longer than {_LENGTH} characters")
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("this is no arithmetic expression") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the numbers are too large") from None
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value)


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
    raise ValueError


def _power(base: int | float, exponent: int | float) -> int | float:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and abs(exponent) * int(abs(base)).bit_length() > _BITS:
        raise OverflowError
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError
    return _bounded(value)


def _bounded(value: int | float) -> int | float:
    if (isinstance(value, int) and value.bit_length() > _BITS) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise OverflowError
    return value


calculator = Tool(
    name="calculator",
    description="Evaluates an arithmetic expression.",
    parameters={"expression": {"type": "string", "description": "For example (12 + 3) * 4."}},
    run=evaluate,
)
