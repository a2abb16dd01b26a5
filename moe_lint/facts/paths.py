"""One function body as ways out of it: which reductions a tensor went through before it is returned or reduced.

A mark on a tensor ("this still owes a sum") goes with the tensor itself: what is computed from it has none.
"""

from __future__ import annotations

import ast

from moe_lint.expressions import dotted
from moe_lint.facts.data import NOTHING, Exit, Marked, Origins, Paths, Summed
from moe_lint.facts.reader import FunctionReader
from moe_lint.facts.syntax import span_of, sums
from moe_lint.formula import Formula, conj
from moe_lint.model import Axis, Span


class PathReader(FunctionReader):
    """Reads what `FunctionReader` does; a reduced or marked tensor also has the reduction or mark among its origins."""

    def paths(self) -> Paths:
        return Paths(tuple(self.exits), tuple(self.summed), tuple(self.marks))

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.exits: list[Exit] = []
        self.summed: list[tuple[Span, Origins]] = []
        self.marks: list[tuple[Span, Formula]] = []
        super().run(node)

    def run_statement(self, statement: ast.stmt) -> bool:
        left = super().run_statement(statement)
        if isinstance(statement, ast.Return) and statement.value is not None and not self.quiet:
            condition = conj(part.formula for part in self.guard)
            self.exits.append(Exit(span_of(statement, self.file.lines), self.elements(statement.value), condition))
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            self._in_place_sum(statement.value)
        return left

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        super()._assign(target, value)
        if isinstance(target, ast.Attribute) and target.attr in self.profile.markers:
            key = target.value.id if isinstance(target.value, ast.Name) else None
            span = span_of(target, self.file.lines)
            if key is not None and isinstance(value, ast.Constant) and value.value is True:
                self.flow.taint[key] = self.flow.taint.get(key, NOTHING) | {Marked(span)}
                if not self.quiet:
                    self.marks.append((span, conj(part.formula for part in self.guard)))

    def origins(self, node: ast.expr | None, element: int | None = None) -> Origins:
        found = super().origins(node, element)
        if isinstance(node, ast.Call | ast.BinOp | ast.UnaryOp):
            found = frozenset(origin for origin in found if not isinstance(origin, Marked))
        return found

    def _in_place_sum(self, node: ast.Call) -> None:
        """`torch.distributed.all_reduce(x)`: what is no function of the engine changes what it is given."""
        last = (self.callee(node) or "").rsplit(".", 1)[-1]
        key = dotted(node.args[0]) if node.args else None
        ours = last in self.profile.collectives or last in self.profile.wrappers
        if key is not None and not ours and self._reduces(node):
            self.flow.taint[key] = self.origins(node)

    def _reduces(self, node: ast.Call) -> bool:
        callee = self.callee(node)
        return callee is not None and self._axis(node, callee.rsplit(".", 1)[-1]) is not None and sums(node)

    def _call_origins(self, node: ast.Call, element: int | None) -> Origins:
        if not self._reduces(node):
            return super()._call_origins(node, element)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        inputs = self.origins(values[0]) if values else NOTHING
        return inputs | {Summed(span_of(node, self.file.lines))} if inputs else NOTHING

    def _site(self, node: ast.Call, callee: str, last: str, axis: Axis) -> None:
        if node.args or node.keywords:
            operand = node.args[0] if node.args else node.keywords[0].value
            self.summed.append((span_of(node, self.file.lines), self.origins(operand)))
