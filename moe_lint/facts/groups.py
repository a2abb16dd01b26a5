"""Where a function picks one of two groups by their sizes: the one, if it has several ranks, else the other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from itertools import pairwise

from msgspec import Struct

from moe_lint.expressions import dotted, nodes
from moe_lint.facts.reader import FunctionReader
from moe_lint.facts.syntax import assignment, span_of
from moe_lint.formula import Formula, conj
from moe_lint.model import Span
from moe_lint.spelling import unparse

#: stands for what a function returns among the names that a block assigns
_RETURNED = "return"


class GroupChoice(Struct, frozen=True):
    """One of two sizes, by a condition; what must hold for the choice to be made at all."""

    span: Span
    first: str
    second: str
    test: Formula
    condition: Formula


class ChoiceReader(FunctionReader):
    """Reads what `FunctionReader` does, and every choice between two sizes that is more than compared with a number."""

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.choices: list[GroupChoice] = []
        #: every callee, whatever it is given
        self.called = {text: None for n in nodes(node) if isinstance(n, ast.Call) and (text := dotted(n.func))}
        blocks = (getattr(n, name, None) for n in nodes(node) for name in ("body", "orelse", "finalbody"))
        lists = (block for block in blocks if isinstance(block, list))
        #: statement -> the one behind it
        self._behind = {id(one): other for block in lists for one, other in pairwise(block)}
        super().run(node)

    def run_statement(self, statement: ast.stmt) -> bool:
        if not self.quiet:
            if isinstance(statement, ast.If):
                for one, other in _pairs(statement, self._behind.get(id(statement))):
                    if self._is_used(one[0]):
                        self._choose(statement.test, one[1], other)
            else:
                targets, _ = assignment(statement) or ([], None)
                if all(self._is_used(dotted(target) or "") for target in targets):
                    for node in nodes(statement):
                        if isinstance(node, ast.IfExp):
                            self._choose(node.test, node.body, node.orelse)
        return super().run_statement(statement)

    def _choose(self, test: ast.expr, one: ast.expr, other: ast.expr) -> None:
        first, second = (unparse(self.resolve(value)) for value in (one, other))
        if first != second and self.profile.is_size(first) and self.profile.is_size(second):
            condition = conj(part.formula for part in self.guard)
            self.choices.append(
                GroupChoice(span_of(test, self.file.lines), first, second, self.formula(test), condition)
            )

    def _is_used(self, name: str) -> bool:
        """Whether a value goes anywhere: a size that is only compared with a number picks no group."""
        if name == _RETURNED:
            return True
        assert self.node is not None
        compared = {
            id(operand)
            for n in nodes(self.node)
            if isinstance(n, ast.Compare) and any(isinstance(o, ast.Constant) for o in (n.left, *n.comparators))
            for operand in (n.left, *n.comparators)
        }
        names = (n for n in nodes(self.node) if isinstance(n, ast.Name) and n.id == name)
        reads = (n for n in names if isinstance(n.ctx, ast.Load))
        return not name.isidentifier() or any(id(read) not in compared for read in reads)


def _pairs(statement: ast.If, behind: ast.stmt | None) -> Iterator[tuple[tuple[str, ast.expr], ast.expr]]:
    """((name, what it is if the condition holds), what it is otherwise), for names that both arms assign or return."""
    then, otherwise = _given(statement.body), _given(statement.orelse)
    if not statement.orelse and _RETURNED in then:
        otherwise = _given([behind] if behind is not None else [])
    for name, value in then.items():
        if name in otherwise:
            yield (name, value), otherwise[name]


def _given(block: Sequence[ast.stmt]) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for statement in block:
        targets, value = assignment(statement) or ([], None)
        if isinstance(statement, ast.Return) and statement.value is not None:
            found[_RETURNED] = statement.value
        elif value is not None:
            found.update((name, value) for target in targets if (name := dotted(target)))
    return found
