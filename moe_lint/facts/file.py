"""A file's text -> `FileFacts`: top level at once, classes and functions on demand."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

from msgspec import Struct

from moe_lint.expressions import FormulaBuilder, NotBoolean, Resolver, boolean_body, dotted, inline
from moe_lint.facts.class_env import ClassEnv
from moe_lint.facts.conduct import Conduct, ConductReader
from moe_lint.facts.data import AttributeFact, ClassFacts, FunctionFacts, Origins
from moe_lint.facts.outline import Block, local_imports, outline, without
from moe_lint.facts.reader import FileContext, FunctionReader
from moe_lint.facts.syntax import arguments_of, defaults_of, import_statements, inner_blocks, is_property
from moe_lint.formula import TRUE, Formula
from moe_lint.model import SkipReason, Span
from moe_lint.profile import Profile
from moe_lint.source import SourceError, parse, parse_part

#: `self.x = …`, `self.x: X = …`, `for self.x in …`
_ASSIGNED_ATTRIBUTE = re.compile(r"\bself\.(\w+)(?=\s*=(?!=)|\s*:.|\s+in\b)")
_CLASS_HEADER = re.compile(r"\bclass\s+\w+\s*\(([^:]*)")
#: An assignment to one name at the left margin.
_ASSIGNED = re.compile(r"(\w+)\s*(?::[^=]+)?=(?!=)")
_Value = TypeVar("_Value")


class _Definition(Struct, frozen=True):
    """Where a function stands: its node, its class, and the function it is nested in."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    class_name: str | None
    parent: str | None


class _OnDemand(Mapping[str, _Value]):
    """Definitions by qualified name; asking for one parses the block that holds it."""

    def __init__(self, found: dict[str, _Value], load: Callable[[str | None], None]) -> None:
        self._found = found
        self._load = load

    def __getitem__(self, name: str) -> _Value:
        if name not in self._found:
            self._load(name.partition(".")[0])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self._load(None)
        return iter(self._found)

    def __len__(self) -> int:
        self._load(None)
        return len(self._found)


class FileFacts:
    """What one file says. Its top level is read at once, classes and functions when asked for.

    A release has thousands of functions and a few dozen reductions: parsing and reading only what is on a reduction's
    path is what keeps a cold run fast. A block that does not parse has the whole file parsed; if that fails too,
    ``refused`` is told why, and the block stays unknown.
    """

    def __init__(
        self, path: str, source: str, profile: Profile, refused: Callable[[SourceError], None] = lambda error: None
    ) -> None:
        """Raises ``SourceError`` for a text whose top level cannot be parsed."""
        self.path = path
        self.lines = source.split("\n")
        self.profile = profile
        self.builder = FormulaBuilder(profile)
        self._source = source
        self._refused = refused
        #: local name -> (module as written, with leading dots; imported name, or None for a module)
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.aliases: dict[str, str] = {}
        self.modules: frozenset[str] = frozenset()
        self._definitions: dict[str, _Definition] = {}
        self._classes: dict[str, ClassFacts] = {}
        self._class_nodes: dict[str, ast.ClassDef] = {}
        self._class_envs: dict[str, ClassEnv] = {}
        self._read: dict[str, FunctionFacts] = {}
        self._conditions: dict[str, Formula | NotBoolean] = {}
        self._conducts: dict[str, Conduct] = {}
        self._blocks: list[Block] = [] if "\r" in source.replace("\r\n", "") else outline(source)
        self._unread: dict[str, list[Block]] = {}
        for block in self._blocks:
            self._unread.setdefault(block.name, []).append(block)
        top = parse_part("\n".join(without(self.lines, self._blocks))) if self._blocks else None
        if top is None:
            self._unread.clear()
            self._blocks = []
            top = parse(source)
        self._read_imports([*import_statements(top), *(self._local_imports() if self._blocks else ())])
        self._headers(top.body, None, None, "")
        asks_backend = all(word in source for word in re.findall(r"\w+", profile.backend_getter))
        self._context = FileContext(self.lines, profile, self.builder, self.aliases, self.modules, asks_backend)

    # --- headers

    def _local_imports(self) -> Iterator[ast.Import | ast.ImportFrom]:
        """Imports inside functions, parsed alone."""
        statements = local_imports(self._source)
        together = parse_part("\n".join(statements))
        # apart, when one of them is prose that looks like an import
        for tree in [together] if together is not None else map(parse_part, statements):
            if tree is not None:
                yield from import_statements(tree)

    def _read_imports(self, statements: Iterable[ast.Import | ast.ImportFrom]) -> None:
        """Imports anywhere in the file: function-local ones name the same things."""
        modules: set[str] = set()
        ambiguous: set[str] = set()
        for node in statements:
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

    def _load(self, name: str | None) -> None:
        """Parse the blocks of one name, or all."""
        for wanted in [name] if name is not None else list(self._unread):
            for block in self._unread.pop(wanted, ()):
                self._parse_block(block)

    def _parse_block(self, block: Block) -> None:
        text = "\n" * (block.first - 1) + "\n".join(self.lines[block.first - 1 : block.last])
        tree = parse_part(text)
        self._headers(tree.body if tree is not None else self._parse_whole(), None, None, "")

    def _parse_whole(self) -> list[ast.stmt]:
        """Every statement of the file, after a block that cannot be parsed alone."""
        self._unread.clear()
        self._blocks = []
        try:
            return parse(self._source).body
        except SourceError as error:
            self._refused(error)
            return []

    def _headers(self, body: list[ast.stmt], class_name: str | None, parent: str | None, prefix: str) -> None:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                self._class_header(statement, parent, prefix)
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                qualname = f"{prefix}{statement.name}"
                self._definitions[qualname] = _Definition(statement, class_name, parent)
                if self._holds_header(statement):
                    self._headers(statement.body, class_name, qualname, f"{qualname}.")
            elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While) and self._holds_header(
                statement
            ):
                for inner in inner_blocks(statement):
                    self._headers(inner, class_name, parent, prefix)

    def _holds_header(self, statement: ast.stmt) -> bool:
        """Whether a function or class may be defined inside a statement."""
        return any("def " in line or "class " in line for line in self.lines[statement.lineno : statement.end_lineno])

    def _class_header(self, node: ast.ClassDef, parent: str | None, prefix: str) -> None:
        qualname = f"{prefix}{node.name}"
        methods = [s for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)]
        self._class_nodes[qualname] = node
        self._classes[qualname] = ClassFacts(
            qualname,
            node.lineno,
            tuple(text for base in node.bases if (text := dotted(base)) is not None),
            frozenset(m.name for m in methods),
            frozenset(m.name for m in methods if is_property(m)),
        )
        self._headers(node.body, qualname, parent, f"{qualname}.")

    def parse_all(self) -> None:
        """Parse every block, so that an error anywhere in the file is known."""
        self._load(None)

    # --- bodies

    @cached_property
    def classes(self) -> Mapping[str, ClassFacts]:
        """Qualified name -> class."""
        return _OnDemand(self._classes, self._load)

    @cached_property
    def functions(self) -> Mapping[str, object]:
        """The qualified names of all functions (what they map to is private)."""
        return self._functions

    @cached_property
    def _functions(self) -> Mapping[str, _Definition]:
        return _OnDemand(self._definitions, self._load)

    def header(self, qualname: str) -> tuple[int, tuple[str, ...], Mapping[str, bool | None]]:
        """(line, parameters, defaults) of a function, without reading its body."""
        node = self._functions[qualname].node
        return node.lineno, tuple(a.arg for a in arguments_of(node)), dict(defaults_of(node.args))

    def extent(self, qualname: str) -> tuple[int, int]:
        """First and last line of a function, its decorators left out."""
        node = self._functions[qualname].node
        return node.lineno, node.end_lineno or node.lineno

    def keyword_only(self, qualname: str) -> frozenset[str]:
        return frozenset(a.arg for a in self._functions[qualname].node.args.kwonlyargs)

    def functions_at(self, lines: Iterable[int]) -> list[str]:
        """The innermost functions around the given lines, in order, each once."""
        wanted = sorted(lines)
        self._load_at(wanted)
        extents = [(name, d.node.lineno, d.node.end_lineno) for name, d in self._definitions.items()]
        return [name for name in dict.fromkeys(_innermost(line, extents) for line in wanted) if name is not None]

    def class_at(self, line: int) -> str | None:
        """The innermost class around a line."""
        self._load_at([line])
        return _innermost(line, [(name, node.lineno, node.end_lineno) for name, node in self._class_nodes.items()])

    def assigned_at(self, line: int) -> str | None:
        """The name that the statement around a line at the top level assigns, if it is an assignment to one."""
        while line > 0 and (not self.lines[line - 1].strip() or self.lines[line - 1][0] in " \t)]}#"):
            line -= 1
        found = _ASSIGNED.match(self.lines[line - 1]) if line else None
        return found.group(1) if found is not None else None

    def classes_deriving(self, base: str) -> list[str]:
        """The classes with a base of this name, whatever it is an attribute of."""
        self._load_at(line for line, bases in self._class_headers if base in bases)
        return [n for n, c in self._classes.items() if any(b.rpartition(".")[2] == base for b in c.bases)]

    @cached_property
    def _class_headers(self) -> list[tuple[int, str]]:
        """(line, text in parentheses) of every class that has such a text."""
        found, line, position = [], 1, 0
        for match in _CLASS_HEADER.finditer(self._source):
            line += self._source.count("\n", position, match.start())
            position = match.start()
            found.append((line, match.group(1)))
        return found

    def nested(self, name: str) -> list[str]:
        """The qualified names of classes and functions of this name that are not at the top level."""
        if any(f"{keyword} {name}" in self._source for keyword in ("def", "class")):
            lines = enumerate(self.lines, 1)
            self._load_at(number for number, line in lines if f"def {name}" in line or f"class {name}" in line)
        return [q for q in (*self._classes, *self._definitions) if q.endswith(f".{name}")]

    def _load_at(self, lines: Iterable[int]) -> None:
        starts = [block.first for block in self._blocks]
        for line in lines:
            block = self._blocks[bisect_right(starts, line) - 1] if self._blocks else None
            if block is not None and block.first <= line <= block.last:
                self._load(block.name)

    def _class_node(self, name: str) -> ast.ClassDef:
        if name not in self._class_nodes:
            self._load(name.partition(".")[0])
        return self._class_nodes[name]

    def class_text(self, class_name: str) -> str:
        node = self._class_node(class_name)
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])

    def function_text(self, qualname: str) -> str:
        node = self._functions[qualname].node
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])

    def functions_in(self, class_name: str) -> list[str]:
        """The methods of a class (functions inside them included)."""
        self._load(class_name.partition(".")[0])
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

    def attribute_names(self, class_name: str) -> list[str]:
        """The attributes that the class assigns, in order."""
        node = self._class_node(class_name)
        first, last = node.lineno, node.end_lineno or node.lineno
        return [n for n, lines in self._assigning_lines.items() if any(first <= line <= last for line in lines)]

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
            definition = self._functions[qualname]
            if definition.parent is not None:
                self.function(definition.parent)  # reads the nested ones with the locals that they see
            if qualname not in self._read:
                try:
                    self._read_function(qualname, {})
                except RecursionError:
                    self._too_deep(qualname)
                    self._read[qualname] = FunctionFacts.unread(qualname, definition.class_name, definition.node.lineno)
        return self._read[qualname]

    def _too_deep(self, qualname: str) -> None:
        line = self._functions[qualname].node.lineno
        self._refused(SourceError(SkipReason.SYNTAX_ERROR, line, f"`{qualname}` is nested too deeply to be read"))

    def _read_function(self, qualname: str, taint: Mapping[str, Origins]) -> None:
        definition = self._functions[qualname]
        reader = FunctionReader(
            self._context, qualname, definition.class_name, self._env_of(definition.class_name), taint
        )
        reader.run(definition.node)
        self._read[qualname] = reader.facts(definition.node)
        for name, inner in self._definitions.items():
            if inner.parent == qualname:
                self._read_function(name, reader.flow.taint)

    def conduct(self, qualname: str) -> Conduct:
        """What one function does as a caller. Raises ``KeyError`` for a name that the file does not define."""
        if qualname not in self._conducts:
            definition = self._functions[qualname]
            reader = ConductReader(self._context, self._env_of(definition.class_name))
            try:
                self._conducts[qualname] = reader.read(definition.node)
            except RecursionError:
                self._too_deep(qualname)
                self._conducts[qualname] = Conduct.unread()
        return self._conducts[qualname]

    def call_condition(self, qualname: str, span: Span) -> Formula:
        """What must hold inside a function for the call at ``span`` to be reached."""
        definition = self._functions[qualname]
        reader = FunctionReader(self._context, qualname, definition.class_name, self._env_of(definition.class_name), {})
        reader.watch = span
        try:
            reader.run(definition.node)
        except RecursionError:
            self._too_deep(qualname)
        return TRUE if reader.watched is None else reader.watched

    def condition(self, qualname: str) -> Formula:
        """The truth value that a function returns. Raises ``NotBoolean``."""
        if qualname not in self._conditions:
            self._conditions[qualname] = self._condition(qualname)
        found = self._conditions[qualname]
        if isinstance(found, NotBoolean):
            raise found
        return found

    def _condition(self, qualname: str) -> Formula | NotBoolean:
        definition = self._functions[qualname]
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
            self._class_envs[class_name] = ClassEnv(self._class_node(class_name))
        return self._class_envs[class_name].get


def _innermost(line: int, extents: Iterable[tuple[str, int, int | None]]) -> str | None:
    """The name of the last extent (first line, last line) to begin that holds a line."""
    inside = [(first, name) for name, first, last in extents if first <= line <= (last or first)]
    return max(inside)[1] if inside else None
