"""What a class's methods may take for granted about ``self.x``."""

from __future__ import annotations

import ast
from collections.abc import Callable

from moe_lint.expressions import is_condition, nodes
from moe_lint.facts.syntax import arguments_of, is_property, self_assignments


class ClassEnv:
    """``self.x`` -> its condition, for properties and for attributes that the class assigns exactly once.

    ``self.x()`` -> that of a method which takes nothing else and returns it. ``named`` gives the methods of a name,
    ``assigning`` those that may assign an attribute (all that do are among them), ``set_elsewhere`` tells whether the
    file assigns it on another object (`self.model.x = True`): what the class sets is a start then.
    """

    def __init__(
        self,
        named: Callable[[str], list[ast.FunctionDef]],
        assigning: Callable[[str], list[ast.FunctionDef]],
        set_elsewhere: Callable[[str], bool],
    ) -> None:
        self._named = named
        self._assigning = assigning
        self._set_elsewhere = set_elsewhere
        self._found: dict[str, ast.expr | None] = {}
        self._locals: dict[str, set[str]] = {}

    def get(self, text: str) -> ast.expr | None:
        if not text.startswith("self."):
            return None
        if text not in self._found:
            self._found[text] = self._find(text[5:])
        return self._found[text]

    def _find(self, name: str) -> ast.expr | None:
        called, name = name.endswith("()"), name.removesuffix("()")
        methods = [m for m in self._named(name) if is_property(m) is not called]
        returned = [self._returned(m) for m in methods if len(arguments_of(m)) == 1 and not m.decorator_list[:called]]
        assigned = [] if called else self._assignments(name)
        if len(returned) + len(assigned) != 1:
            return None
        value = returned[0] if returned else assigned[0][1]
        if value is None or not is_condition(value):
            return None
        return value if returned or (self._is_portable(*assigned[0]) and not self._set_elsewhere(name)) else None

    def _assignments(self, attribute: str) -> list[tuple[ast.FunctionDef, ast.expr | None]]:
        """(method, value) of each assignment; no value where it is not a plain unconditional one."""
        return [
            (method, value)
            for method in self._assigning(attribute)
            for name, value in self_assignments(method)
            if name == attribute
        ]

    @staticmethod
    def _returned(method: ast.FunctionDef) -> ast.expr | None:
        body = [s for s in method.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None

    def _is_portable(self, method: ast.FunctionDef, value: ast.expr | None) -> bool:
        """Whether other methods understand the value: it names no local of the method that assigns it."""
        if value is None:
            return False
        if method.name not in self._locals:
            stored = {n.id for n in nodes(method) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            self._locals[method.name] = stored | {a.arg for a in arguments_of(method)} - {"self"}
        local = self._locals[method.name]
        return not any(isinstance(n, ast.Name) and n.id in local for n in nodes(value))
