"""Syntax nodes -> source text, as `ast.unparse` writes it.

The names of all conditions and the texts of all arguments come from here. Nearly all are names, attributes, calls and
comparisons of these; `ast.unparse` takes ten times as long for them, since it keeps track of precedence.
"""

from __future__ import annotations

import ast

_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


def unparse(node: ast.expr) -> str:
    """The text of an expression, normalised."""
    text = _argument(node)
    return ast.unparse(node) if text is None else text


def _argument(node: ast.expr) -> str | None:
    """What stands alone or between commas: an operand, a comparison of operands, or the negation of these."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        denied = _argument(node.operand)
        return None if denied is None else f"not {denied}"
    if not isinstance(node, ast.Compare):
        return _operand(node)
    operands = [_operand(part) for part in (node.left, *node.comparators)]
    if None in operands:
        return None
    first, *rest = operands
    return " ".join([first or "", *(f"{_OPERATORS[type(o)]} {text}" for o, text in zip(node.ops, rest, strict=True))])


def _operand(node: ast.expr) -> str | None:
    """What needs no parentheses between operators; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return f"-{value}" if type(value) is int and value >= 0 else None
    if isinstance(node, ast.Constant):
        plain = node.value is None or type(node.value) in (bool, int) or (type(node.value) is str and not node.kind)
        return repr(node.value) if plain else None
    return _primary(node)


def _primary(node: ast.expr) -> str | None:
    """A name and what is attached to it: `a`, `a.b`, `a[0]`, `a.b(c, d=e)`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        value = _primary(node.value)
        return None if value is None else f"{value}.{node.attr}"
    if isinstance(node, ast.Subscript):
        value, inner = _primary(node.value), _operand(node.slice)
        return None if value is None or inner is None else f"{value}[{inner}]"
    if isinstance(node, ast.Call):
        called = _primary(node.func)
        given = [_argument(argument) for argument in node.args]
        named = [(k.arg, _argument(k.value)) for k in node.keywords]
        if called is None or None in given or any(key is None or text is None for key, text in named):
            return None
        return f"{called}({', '.join([*map(str, given), *(f'{key}={text}' for key, text in named)])})"
    return None
