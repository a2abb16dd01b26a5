"""Where a function may settle a tensor that it got from a layer, before it hands it on."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable

from msgspec import Struct

from moe_lint.expressions import dotted, nodes
from moe_lint.facts.syntax import assignment, inner_blocks, span_of
from moe_lint.model import Span
from moe_lint.source import Lines


class Leaving(Struct, frozen=True):
    """A tensor by its name, and the statement in front of which it is to be settled.

    ``part`` is whether it is the first part of what the layers return, not the whole.
    """

    name: str
    part: bool
    statement: Span


def leaving(function: ast.AST, layers: Collection[Span], leaks: Collection[Span], lines: Lines) -> Leaving | None:
    """What the calls ``layers`` return (first), and the innermost place in front of all calls ``leaks``.

    None where the calls do not agree on a name, or the place does not read it.
    """
    assigns = filter(None, map(assignment, nodes(function)))
    given = [a for a, value in assigns if isinstance(value, ast.Call) and span_of(value, lines) in layers]
    names = {(_first(targets[0]), isinstance(targets[0], ast.Tuple)) for targets in given}
    if len(names) != 1 or len(given) != len(layers):
        return None
    ((name, part),) = names
    body = getattr(function, "body", [])
    statement = _in_front(body, leaks, lines)
    if name is None or statement is None:
        return None
    if not any(isinstance(n, ast.expr) and dotted(n) == name for n in nodes(statement)):
        return None
    return Leaving(name, part, span_of(statement, lines))


def result_name(function: ast.AST, call: Span, lines: Lines) -> str | None:
    """The one name that a function gives to what a call returns."""
    assigns = filter(None, map(assignment, nodes(function)))
    given = [a for a, value in assigns if isinstance(value, ast.Call) and span_of(value, lines) == call]
    return dotted(given[0][0]) if len(given) == 1 and len(given[0]) == 1 else None


def first_returned(function: ast.AST) -> frozenset[str | None]:
    """The names of what a function returns, or of the first part of it."""
    returns = (n.value for n in nodes(function) if isinstance(n, ast.Return) and n.value is not None)
    return frozenset(_first(value) for value in returns)


def _first(value: ast.expr) -> str | None:
    if isinstance(value, ast.Tuple):
        return dotted(value.elts[0]) if value.elts else None
    return dotted(value)


def _in_front(body: Iterable[ast.stmt], leaks: Collection[Span], lines: Lines) -> ast.stmt | None:
    """The first statement that holds a leak, in the innermost block that holds all of them."""
    for statement in body:
        held = _held(statement, leaks, lines)
        if held:
            inner = [block for block in inner_blocks(statement) if sum(_held(s, leaks, lines) for s in block) == held]
            if held == len(leaks) and inner:
                return _in_front(inner[0], leaks, lines)
            return statement
    return None


def _held(statement: ast.stmt, leaks: Collection[Span], lines: Lines) -> int:
    """How many of the calls stand in a statement."""
    return sum(isinstance(n, ast.Call) and span_of(n, lines) in leaks for n in nodes(statement))
