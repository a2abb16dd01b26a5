"""A parsed file -> `FileFacts`: headers at once, bodies on demand."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from moe_lint.expressions import FormulaBuilder, NotBoolean, Resolver, boolean_body, dotted, inline, is_condition
from moe_lint.facts.data import AttributeFact, ClassFacts, FunctionFacts, Origins
from moe_lint.facts.reader import FileContext, FunctionReader
from moe_lint.facts.syntax import (
    arguments_of,
    defaults_of,
    holds_line,
    import_statements,
    inner_blocks,
    is_property,
    lines_with,
    self_assignments,
)
from moe_lint.formula import Formula
from moe_lint.profile import Profile

_ASSIGNED_ATTRIBUTE = re.compile(r"\bself\.(\w+)(?=\s*=(?!=)|\s*:.|\s+in\b)")
_IMPORT = re.compile(r"import\b")
#: The first line of a function or class.
_HEADER = re.compile(r"^[ \t\f]*(?:async[ \t]+def|def|class)\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Definition:
    """Where a function stands: its node, its class, and the function it is nested in."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    class_name: str | None
    parent: str | None


class FileFacts:
    """What one file says. Headers (imports, classes, function names) are read at once, bodies when asked for.

    A release has thousands of functions and a few dozen reductions: reading only the bodies on a reduction's path
    is what keeps a cold run fast.
    """

    def __init__(self, path: str, tree: ast.Module, source: str, profile: Profile) -> None:
        self.path = path
        self.lines = source.split("\n")
        self.profile = profile
        self.builder = FormulaBuilder(profile)
        #: local name -> (module as written, with leading dots; imported name, or None for a module)
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.classes: dict[str, ClassFacts] = {}
        self.aliases: dict[str, str] = {}
        self.modules: frozenset[str] = frozenset()
        self._import_lines = lines_with(_IMPORT, source)
        self._header_lines = lines_with(_HEADER, source)
        self._definitions: dict[str, _Definition] = {}
        self._class_nodes: dict[str, ast.ClassDef] = {}
        self._class_envs: dict[str, _ClassEnv] = {}
        self._read: dict[str, FunctionFacts] = {}
        self._conditions: dict[str, Formula | NotBoolean] = {}
        self._read_imports(tree)
        self._headers(tree.body, None, None, "")
        asks_backend = all(word in source for word in re.findall(r"\w+", profile.backend_getter))
        self._context = FileContext(self.lines, profile, self.builder, self.aliases, self.modules, asks_backend)

    # --- headers

    def _read_imports(self, tree: ast.Module) -> None:
        """Imports anywhere in the file: function-local ones name the same things."""
        modules: set[str] = set()
        ambiguous: set[str] = set()
        for node in import_statements(tree, self._import_lines):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.split(".")[0]
                    self.imports[name] = (alias.name if alias.asname else name, None)
                    modules.add(alias.asname or alias.name)
            else:
                module = "." * node.level + (node.module or "")
                for alias in node.names:
                    name = alias.asname or alias.name
                    self.imports.setdefault(name, (module, alias.name))
                    if self.imports[name][1] != alias.name:
                        ambiguous.add(name)  # `if npu: from x import y_npu as y`, `else: from x import y`
                    elif alias.asname:
                        self.aliases[name] = alias.name
                    modules.add(name)  # `from package import module`
        for name in ambiguous:
            self.aliases.pop(name, None)
        self.modules = frozenset(modules)

    def _headers(self, body: list[ast.stmt], class_name: str | None, parent: str | None, prefix: str) -> None:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                self._class_header(statement, parent, prefix)
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                qualname = f"{prefix}{statement.name}"
                self._definitions[qualname] = _Definition(statement, class_name, parent)
                if self._holds_header(statement):
                    self._headers(statement.body, class_name, qualname, f"{qualname}.")
            elif self._holds_header(statement) and isinstance(
                statement, ast.If | ast.Try | ast.With | ast.For | ast.While
            ):
                for inner in inner_blocks(statement):
                    self._headers(inner, class_name, parent, prefix)

    def _holds_header(self, statement: ast.stmt) -> bool:
        """Whether a function or class is defined inside a statement."""
        return holds_line(self._header_lines, statement.lineno + 1, statement.end_lineno)

    def _class_header(self, node: ast.ClassDef, parent: str | None, prefix: str) -> None:
        qualname = f"{prefix}{node.name}"
        methods = [s for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)]
        self._class_nodes[qualname] = node
        self.classes[qualname] = ClassFacts(
            qualname,
            node.lineno,
            tuple(text for base in node.bases if (text := dotted(base)) is not None),
            frozenset(m.name for m in methods),
            frozenset(m.name for m in methods if is_property(m)),
        )
        self._headers(node.body, qualname, parent, f"{qualname}.")

    # --- bodies

    @property
    def functions(self) -> Iterable[str]:
        """The qualified names of all functions."""
        return self._definitions

    def header(self, qualname: str) -> tuple[int, tuple[str, ...], Mapping[str, bool | None]]:
        """(line, parameters, defaults) of a function, without reading its body."""
        node = self._definitions[qualname].node
        return node.lineno, tuple(a.arg for a in arguments_of(node)), dict(defaults_of(node.args))

    def extent(self, qualname: str) -> tuple[int, int]:
        """First and last line of a function, its decorators left out."""
        node = self._definitions[qualname].node
        return node.lineno, node.end_lineno or node.lineno

    def keyword_only(self, qualname: str) -> frozenset[str]:
        return frozenset(a.arg for a in self._definitions[qualname].node.args.kwonlyargs)

    @cached_property
    def _owners(self) -> list[str | None]:
        """Line number -> the innermost function around it."""
        owners: list[str | None] = [None] * (len(self.lines) + 2)
        for name, definition in sorted(self._definitions.items(), key=lambda item: item[1].node.lineno):
            node = definition.node
            end = node.end_lineno or node.lineno
            owners[node.lineno : end + 1] = [name] * (end + 1 - node.lineno)
        return owners

    def functions_at(self, lines: Iterable[int]) -> list[str]:
        """The innermost functions around the given lines, in order, each once."""
        return [name for name in dict.fromkeys(self._owners[line] for line in sorted(lines)) if name is not None]

    def class_at(self, line: int) -> str | None:
        """The innermost class around a line."""
        inside = [
            (node.lineno, name)
            for name, node in self._class_nodes.items()
            if node.lineno <= line <= (node.end_lineno or node.lineno)
        ]
        return max(inside)[1] if inside else None

    def class_text(self, class_name: str) -> str:
        node = self._class_nodes[class_name]
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])

    def function_text(self, qualname: str) -> str:
        node = self._definitions[qualname].node
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])

    def functions_in(self, class_name: str) -> list[str]:
        """The methods of a class (functions inside them included)."""
        return [name for name, d in self._definitions.items() if d.class_name == class_name]

    def attribute(self, class_name: str, name: str) -> list[AttributeFact]:
        """Every assignment to ``self.name`` in the class."""
        assigning = set(self.functions_at(self._assigning_lines.get(name, ())))
        return [
            fact
            for qualname in self.functions_in(class_name)
            if qualname in assigning
            for fact in self.function(qualname).attributes
            if fact.name == name
        ]

    @cached_property
    def _assigning_lines(self) -> dict[str, list[int]]:
        """Attribute -> the lines that may assign it, told from the text: other bodies need not be read for it."""
        found: dict[str, list[int]] = {}
        for number, line in enumerate(self.lines, 1):
            if "self." in line:
                for name in _ASSIGNED_ATTRIBUTE.findall(line):
                    found.setdefault(name, []).append(number)
        return found

    def function(self, qualname: str) -> FunctionFacts:
        """The facts of one function's body. Raises ``KeyError`` for a name that the file does not define."""
        if qualname not in self._read:
            definition = self._definitions[qualname]
            if definition.parent is not None:
                self.function(definition.parent)  # reads the nested ones with the locals that they see
            if qualname not in self._read:
                self._read_function(qualname, {})
        return self._read[qualname]

    def _read_function(self, qualname: str, taint: Mapping[str, Origins]) -> None:
        definition = self._definitions[qualname]
        reader = FunctionReader(
            self._context, qualname, definition.class_name, self._env_of(definition.class_name), taint
        )
        reader.run(definition.node)
        self._read[qualname] = reader.facts(definition.node)
        for name, inner in self._definitions.items():
            if inner.parent == qualname:
                self._read_function(name, reader.flow.taint)

    def condition(self, qualname: str) -> Formula:
        """The truth value that a function returns. Raises ``NotBoolean``."""
        if qualname not in self._conditions:
            self._conditions[qualname] = self._condition(qualname)
        found = self._conditions[qualname]
        if isinstance(found, NotBoolean):
            raise found
        return found

    def _condition(self, qualname: str) -> Formula | NotBoolean:
        definition = self._definitions[qualname]
        class_env = self._env_of(definition.class_name)

        def build(expression: ast.expr, local: Mapping[str, ast.expr]) -> Formula:
            resolver = Resolver(class_env, self.aliases, self.modules, self.profile)
            return self.builder.build(resolver.resolve(inline(expression, local)))

        if len(definition.node.body) > 24:
            return NotBoolean(definition.node.lineno, "the body is too long for a boolean function")
        try:
            return boolean_body(definition.node.body, build)
        except NotBoolean as error:
            return error

    def _env_of(self, class_name: str | None) -> Callable[[str], ast.expr | None]:
        if class_name is None:
            return lambda text: None
        if class_name not in self._class_envs:
            self._class_envs[class_name] = _ClassEnv(self._class_nodes[class_name])
        return self._class_envs[class_name].get


class _ClassEnv:
    """``self.x`` -> its condition, for properties and for attributes that the class assigns exactly once."""

    def __init__(self, node: ast.ClassDef) -> None:
        self._methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
        self._found: dict[str, ast.expr | None] = {}
        self._locals: dict[str, set[str]] = {}

    def get(self, text: str) -> ast.expr | None:
        if not text.startswith("self."):
            return None
        if text not in self._found:
            self._found[text] = self._find(text[5:])
        return self._found[text]

    def _find(self, name: str) -> ast.expr | None:
        values = [self._returned(m) for m in self._methods if m.name == name and is_property(m)]
        values += [self._portable(method, value) for method, value in self._assignments.get(name, ())]
        value = values[0] if len(values) == 1 else None
        return value if value is not None and is_condition(value) else None

    @cached_property
    def _assignments(self) -> dict[str, list[tuple[ast.FunctionDef, ast.expr | None]]]:
        """Attribute -> (method, value) of each assignment; no value where it is not a plain unconditional one."""
        found: dict[str, list[tuple[ast.FunctionDef, ast.expr | None]]] = {}
        for method in self._methods:
            for name, value in self_assignments(method):
                found.setdefault(name, []).append((method, value))
        return found

    @staticmethod
    def _returned(method: ast.FunctionDef) -> ast.expr | None:
        body = [s for s in method.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        return body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None

    def _portable(self, method: ast.FunctionDef, value: ast.expr | None) -> ast.expr | None:
        """The value when other methods understand it: it names no local of the method that assigns it."""
        if value is None:
            return None
        if method.name not in self._locals:
            stored = {n.id for n in ast.walk(method) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            self._locals[method.name] = stored | {a.arg for a in arguments_of(method)} - {"self"}
        local = self._locals[method.name]
        return None if any(isinstance(n, ast.Name) and n.id in local for n in ast.walk(value)) else value
