"""Whether a function hands an attribute on as a value: whoever gets it may run it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from moe_lint.expressions import dotted

#: Whoever is asked these only looks at what it is given.
_QUESTIONS = frozenset({"isinstance", "issubclass", "hasattr", "getattr", "callable", "len", "bool", "id", "type"})


def hands_on(node: ast.AST, name: str) -> bool:
    """Whether ``name`` (`self.shared_experts`) stands for itself somewhere: as an argument, a value, in an arm of one.

    Not where it is called, looked into (`name.weight`), compared or tested.
    """
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, ast.Attribute | ast.Name) and dotted(current) == name:
            if isinstance(current.ctx, ast.Load):
                return True
            continue
        stack += _values(current)
    return False


def _values(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node whose value it passes on or keeps."""
    if isinstance(node, ast.Attribute | ast.Subscript):
        yield from _below(node.value)
        if isinstance(node, ast.Subscript):
            yield node.slice
    elif isinstance(node, ast.Call):
        yield from _below(node.func)
        if dotted(node.func) not in _QUESTIONS:
            yield from (*node.args, *(keyword.value for keyword in node.keywords))
    elif isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
        yield from _below(node.test)
        yield from (child for child in ast.iter_child_nodes(node) if child is not node.test)
    elif isinstance(node, ast.Compare):
        yield from (part for operand in (node.left, *node.comparators) for part in _below(operand))
    elif isinstance(node, ast.UnaryOp):
        yield from _below(node.operand)
    else:
        yield from ast.iter_child_nodes(node)


def _below(node: ast.AST) -> Iterator[ast.AST]:
    """What stands inside a node whose own value is only looked at."""
    if isinstance(node, ast.BoolOp):
        for operand in node.values:
            yield from _below(operand)
    elif not isinstance(node, ast.Name):
        yield from _values(node)
