"""What a class's methods may take for granted about ``self.x``."""

from __future__ import annotations

import ast
from collections.abc import Callable

from moe_lint.expressions import is_condition, nodes
from moe_lint.facts.state import Definition
from moe_lint.facts.syntax import arguments_of, self_assignments


class ClassEnv:
    """``self.x`` -> its condition, for properties and for attributes that the class assigns exactly once.

    ``self.x()`` -> that of a method which takes nothing else and returns it. ``named`` gives the methods of a name,
    ``assigning`` those that may assign an attribute (all that do are among them), ``set_elsewhere`` tells whether the
    file assigns it on another object (`self.model.x = True`): what the class sets is a start then. ``parse`` is asked
    once for each method: nearly all attributes are assigned in one.
    """

    def __init__(
        self,
        named: Callable[[str], list[Definition]],
        assigning: Callable[[str], list[Definition]],
        set_elsewhere: Callable[[str], bool],
        parse: Callable[[Definition], ast.FunctionDef | ast.AsyncFunctionDef],
    ) -> None:
        self._named = named
        self._assigning = assigning
        self._set_elsewhere = set_elsewhere
        self._parse = parse
        self._found: dict[str, ast.expr | None] = {}
        self._methods: dict[int, _Method] = {}

    def get(self, text: str) -> ast.expr | None:
        """What `self.x` or `self.x()` stands for in the class; None where it is not one expression."""
        if not text.startswith("self."):
            return None
        if text not in self._found:
            self._found[text] = self._find(text[5:])
        return self._found[text]

    def _find(self, name: str) -> ast.expr | None:
        called, name = name.endswith("()"), name.removesuffix("()")
        asked = (d for d in self._named(name) if d.is_property is not called)
        methods = [node for d in asked if isinstance(node := self._parse(d), ast.FunctionDef)]
        returned = [self._returned(m) for m in methods if len(arguments_of(m)) == 1 and not m.decorator_list[:called]]
        assigned = [] if called else self._assignments(name)
        if len(returned) + len(assigned) != 1:
            return None
        value = returned[0] if returned else assigned[0][1]
        if value is None or not is_condition(value):
            return None
        return value if returned or (_is_portable(*assigned[0]) and not self._set_elsewhere(name)) else None

    def _assignments(self, attribute: str) -> list[tuple[_Method, ast.expr | None]]:
        """(method, value) of each assignment; no value where it is not a plain unconditional one of a condition."""
        methods = [self._method(definition) for definition in self._assigning(attribute)]
        return [(method, value) for method in methods for value in method.assigned.get(attribute, ())]

    def _method(self, definition: Definition) -> _Method:
        if definition.line not in self._methods:
            node = self._parse(definition)
            self._methods[definition.line] = _Method(node) if isinstance(node, ast.FunctionDef) else _Method()
        return self._methods[definition.line]

    @staticmethod
    def _returned(method: ast.FunctionDef) -> ast.expr | None:
        body = [s for s in method.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None


class _Method:
    """What a method assigns to ``self``, attribute by attribute, and the names of its locals.

    Only conditions are kept of it: a constructor is full of larger syntax trees.
    """

    def __init__(self, node: ast.FunctionDef | None = None) -> None:
        self.assigned: dict[str, list[ast.expr | None]] = {}
        self.local: set[str] = set()
        if node is not None:
            for name, value in self_assignments(node):
                kept = value if value is not None and is_condition(value) else None
                self.assigned.setdefault(name, []).append(kept)
            stored = {n.id for n in nodes(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            self.local = stored | {a.arg for a in arguments_of(node)} - {"self"}


def _is_portable(method: _Method, value: ast.expr | None) -> bool:
    """Whether other methods understand the value: it names no local of the method that assigns it."""
    return value is not None and not any(isinstance(n, ast.Name) and n.id in method.local for n in nodes(value))
