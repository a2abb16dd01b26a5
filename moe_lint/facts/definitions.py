"""Which classes and functions a file defines, and where: its top level at once, what is inside when asked for."""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import TypeVar

from moe_lint.expressions import dotted
from moe_lint.facts.data import ClassFacts
from moe_lint.facts.outline import Block, Method, local_imports, methods, outline, without
from moe_lint.facts.state import Definition, FileState, Part, Signature
from moe_lint.facts.syntax import arguments_of, defaults_of, import_statements, inner_blocks, is_property
from moe_lint.source import Lines, SourceError, can_be_parsed, parse, parse_part

#: The keyword comes first and its left edge after it: a pattern that starts with plain text is searched several times
#: faster.
_CLASS_HEADER = re.compile(r"class(?<!\wclass)\s+\w+\s*\(([^:]*)")
#: An assignment to one name at the left margin.
_ASSIGNED = re.compile(r"(\w+)\s*(?::[^=]+)?=(?!=)")
_FIRST = attrgetter("first")
_Value = TypeVar("_Value")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class _OnDemand(Mapping[str, _Value]):
    """Definitions by qualified name; asking for one parses the block that holds it."""

    def __init__(self, found: dict[str, _Value], load: Callable[[str | None], None]) -> None:
        self._found = found
        self._load = load

    def __getitem__(self, name: str) -> _Value:
        if name not in self._found:
            self._load(name)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._found and isinstance(name, str):
            self._load(name)
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        self._load(None)
        return iter(self._found)

    def __len__(self) -> int:
        self._load(None)
        return len(self._found)


class Definitions:
    """The definitions of one file.

    A release has thousands of functions and a few dozen reductions: parsing and reading only what is on a reduction's
    path is what keeps a cold run fast. A block that does not parse has the whole file parsed; if that fails too,
    ``errors`` says why, and the block stays unknown.
    """

    def __init__(self, path: str, lines: Lines, state: FileState | None) -> None:
        """``state`` is what an earlier run found out about this text.

        Raises ``SourceError`` for a text whose top level cannot be parsed.
        """
        self.path = path
        self.lines = lines
        #: what could not be parsed or read so far
        self.errors: list[SourceError] = []
        self._state = FileState() if state is None else state
        if state is None:
            self._read_top_level()
        #: local name -> (module as written, with leading dots; imported name, or None for a module)
        self.imports = self._state.imports
        #: local name -> the name that was imported
        self.aliases = self._state.aliases
        self.modules = self._state.modules

    @property
    def _source(self) -> str:
        return self.lines.text

    # --- what is parsed when

    def _read_top_level(self) -> None:
        state = self._state
        state.blocks = [] if "\r" in self._source.replace("\r\n", "") else outline(self.lines)
        for block in state.blocks:
            state.unread.setdefault(block.name, []).append(block)
        top = self._top_level()
        if top is None:
            state.unread.clear()
            state.blocks = []
            top = parse(self._source)
        self._read_imports([*import_statements(top), *(self._local_imports() if state.blocks else ())])
        self._headers(top.body, None)

    def _top_level(self) -> ast.Module | None:
        blocks = self._state.blocks
        return parse_part(without(self.lines, blocks)) if blocks else None

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
        imports, aliases = self._state.imports, self._state.aliases
        modules: set[str] = set()
        ambiguous: set[str] = set()
        for node in statements:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.split(".")[0]
                    imports[name] = (alias.name if alias.asname else name, None)
                    modules.add(alias.asname or alias.name)
            else:
                module = "." * node.level + (node.module or "")
                for alias in node.names:
                    name = alias.asname or alias.name
                    imports.setdefault(name, (module, alias.name))
                    if imports[name][1] != alias.name:
                        ambiguous.add(name)  # `if npu: from x import y_npu as y`, `else: from x import y`
                    elif alias.asname:
                        aliases[name] = alias.name
                    modules.add(name)  # `from package import module`
        for name in ambiguous:
            aliases.pop(name, None)
        self._state.modules = frozenset(modules)

    def _load(self, name: str | None) -> None:
        """Parse the blocks of one name, or all."""
        for wanted in [name] if name is not None else list(self._state.unread):
            for block in self._state.unread.pop(wanted, ()):
                self._parse_block(block)

    def _parse_block(self, block: Block, apart: bool = True) -> None:
        """Parse a block; the methods of a class are left out until they are asked for, unless not ``apart``."""
        own = tuple(methods(self.lines, block)) if block.is_class and apart else ()
        part = Part(block, own)
        body = _body(self, part)
        if own:
            node = body[0] if body is not None and len(body) == 1 else None
            if isinstance(node, ast.ClassDef) and node.body[0].col_offset == own[0].indent:
                self._class_header(node, part)
            else:
                self._parse_block(block, apart=False)
        elif body is not None:
            self._headers(body, part)
        else:
            self._headers(self._parse_whole(), None)

    def _node(self, definition: Definition) -> Function:
        """The syntax node of a function; a method is parsed when it is first asked for."""
        if not definition.known:
            self._learn(definition)
        node = _function_at(_body(self, definition.part) or (), definition.line)
        # nothing is known of a function in a file that cannot be parsed: that has been told
        return node if node is not None else _empty_function(definition.name, definition.line)

    def _learn(self, definition: Definition) -> None:
        """Parse a method, and take down what it defines."""
        definition.known = True
        method = definition.part
        assert isinstance(method, Method)
        body = _body(self, method) or ()
        if len(body) == 1 and isinstance(node := body[0], ast.FunctionDef | ast.AsyncFunctionDef):
            qualname = f"{definition.class_name}.{method.name}"
            if self._state.definitions.get(qualname) is definition:
                self._state.signatures[qualname] = signature_of(node)  # asked for sooner or later, of most
            if self._holds_header(node.lineno, node.end_lineno):
                self._headers(node.body, method, definition.class_name, qualname, f"{qualname}.")
            return
        for block in self._state.blocks:  # its text was misread: the class is parsed as a whole
            if block.is_class and block.first <= method.first <= block.last:
                self._parse_block(block, apart=False)
        for found in self._state.methods[definition.class_name or ""]:
            if found.name == method.name and not isinstance(found.part, Method):
                definition.part, definition.line, definition.last = found.part, found.line, found.last

    def parsed(self, part: Method | Part | None) -> ast.Module | None:
        """The syntax tree of a part of the file, with the lines that it has in the file."""
        if isinstance(part, Method):
            tree = parse_part("\n" * (part.first - 2) + "class _:\n" + self.lines.block(part.first, part.last))
            top = tree.body[0] if tree is not None and len(tree.body) == 1 else None
            return ast.Module(top.body, []) if isinstance(top, ast.ClassDef) else None
        if part is None:
            return self._top_level() or parse_part(self._source)
        texts, line = [], part.block.first
        for method in part.without:
            texts += [self.lines.block(line, method.first - 1)] if line < method.first else []
            texts.append(" " * method.indent + "pass" + "\n" * (method.last - method.first))
            line = method.last + 1
        texts += [self.lines.block(line, part.block.last)] if line <= part.block.last else []
        return parse_part("\n" * (part.block.first - 1) + "\n".join(texts))

    def _parse_whole(self) -> list[ast.stmt]:
        """Every statement of the file, after a block that cannot be parsed alone."""
        self._state.unread.clear()
        self._state.blocks = []
        try:
            return parse(self._source).body
        except SourceError as error:
            self.errors.append(error)
            return []

    def _headers(
        self,
        body: Iterable[ast.stmt],
        part: Method | Part | None,
        class_name: str | None = None,
        parent: str | None = None,
        prefix: str = "",
    ) -> None:
        """Record what statements define; ``part`` is what was parsed to see them."""
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                self._class_header(statement, part, parent, prefix)
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                qualname = f"{prefix}{statement.name}"
                self._state.definitions[qualname] = _definition(statement, part, class_name, parent)
                if self._holds_header(statement.lineno, statement.end_lineno):
                    self._headers(statement.body, part, class_name, qualname, f"{qualname}.")
            elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While) and self._holds_header(
                statement.lineno, statement.end_lineno
            ):
                for inner in inner_blocks(statement):
                    self._headers(inner, part, class_name, parent, prefix)

    def _holds_header(self, first: int, last: int | None) -> bool:
        """Whether a function or class may be defined inside a statement on these lines."""
        text = self.lines.block(first + 1, last or first)
        return "def " in text or "class " in text

    def _class_header(
        self, node: ast.ClassDef, part: Method | Part | None, parent: str | None = None, prefix: str = ""
    ) -> None:
        """Record a class. Its node may lack methods: the ``part`` that it was parsed from tells which."""
        qualname = f"{prefix}{node.name}"
        apart = part.without if isinstance(part, Part) and not prefix else ()
        own = [Definition(m.name, m.line, m.last, qualname, None, m, m.is_property, False) for m in apart]
        self._state.definitions.update((f"{qualname}.{d.name}", d) for d in own)
        self._state.apart += own
        functions = (s for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef))
        own = sorted([*own, *(_definition(s, part, qualname, None) for s in functions)], key=lambda d: d.line)
        self._state.methods[qualname] = own
        self._state.extents[qualname] = (node.lineno, max(node.end_lineno or 0, *(d.last for d in own), node.lineno))
        self._state.classes[qualname] = ClassFacts(
            qualname,
            node.lineno,
            tuple(text for base in node.bases if (text := dotted(base)) is not None),
            frozenset(d.name for d in own),
            frozenset(d.name for d in own if d.is_property),
        )
        self._headers(node.body, part, qualname, parent, f"{qualname}.")

    def parse_all(self) -> None:
        """Look at everything, so that an error anywhere in the file is known: what nobody asks for gets no nodes."""
        if self._state.whole:
            return
        self._state.whole = True
        unread = (block for blocks in self._state.unread.values() for block in blocks)
        texts = [self.lines.block(block.first, block.last) for block in unread]
        unparsed = (d.part for d in self._state.apart if not d.known and isinstance(d.part, Method))
        texts += [f"class _:\n{self.lines.block(m.first, m.last)}" for m in unparsed]
        if not can_be_parsed("\n".join(texts)):
            self._headers(self._parse_whole(), None)

    # --- what there is, and where

    @cached_property
    def classes(self) -> Mapping[str, ClassFacts]:
        """Qualified name -> class."""
        return _OnDemand(self._state.classes, self._load_inner)

    @cached_property
    def functions(self) -> Mapping[str, object]:
        """The qualified names of all functions (what they map to is private)."""
        return self._functions

    @cached_property
    def _functions(self) -> Mapping[str, Definition]:
        return _OnDemand(self._state.definitions, self._load_inner)

    def _load_inner(self, qualname: str | None) -> None:
        """Parse what defines a class or function, or all that defines any: blocks, and methods that define further."""
        if qualname is None:
            self._load(None)
            for definition in list(self._state.definitions.values()):
                self._open(definition)
            return
        self._load(qualname.partition(".")[0])
        end = qualname.find(".")
        while end >= 0:
            if qualname[:end] in self._state.definitions:
                self._open(self._state.definitions[qualname[:end]])
            end = qualname.find(".", end + 1)

    def _open(self, definition: Definition) -> None:
        """Make the functions and classes known that a method defines."""
        plain = self._state.plain
        if not definition.known and definition.line not in plain:
            if self._holds_header(definition.line, definition.last):
                self._learn(definition)
            else:
                plain.add(definition.line)

    def header(self, qualname: str) -> tuple[int, tuple[str, ...], Mapping[str, bool | None]]:
        """(line, parameters, defaults) of a function, without reading its body."""
        signature = self._signature(qualname)
        return signature.line, signature.params, signature.defaults

    def _signature(self, qualname: str) -> Signature:
        signatures = self._state.signatures
        if qualname not in signatures:
            signatures[qualname] = signature_of(self._node(self._functions[qualname]))
        return signatures[qualname]

    def extent(self, qualname: str) -> tuple[int, int]:
        """First and last line of a function, its decorators left out."""
        definition = self._functions[qualname]
        return definition.line, definition.last

    def keyword_only(self, qualname: str) -> frozenset[str]:
        return self._signature(qualname).keyword_only

    def functions_at(self, lines: Iterable[int]) -> list[str]:
        """The innermost functions around the given lines, in order, each once."""
        wanted = sorted(lines)
        self._load_at(wanted)
        found: dict[str, None] = {}
        for line in wanted:
            inside = [(d.line, name) for name, d in self._state.definitions.items() if d.line <= line <= d.last]
            if inside:
                found[max(inside)[1]] = None
        return list(found)

    def class_at(self, line: int) -> str | None:
        """The innermost class around a line."""
        self._load_at([line])
        inside = [(first, name) for name, (first, last) in self._state.extents.items() if first <= line <= last]
        return max(inside)[1] if inside else None

    def assigned_at(self, line: int) -> str | None:
        """The name that the statement around a line at the top level assigns, if it is an assignment to one."""
        assigned = self._state.assigned
        if line not in assigned:
            first = line
            while first > 0 and (not self.lines[first - 1].strip() or self.lines[first - 1][0] in " \t)]}#"):
                first -= 1
            found = _ASSIGNED.match(self.lines[first - 1]) if first else None
            assigned[line] = found.group(1) if found is not None else None
        return assigned[line]

    def classes_deriving(self, base: str) -> list[str]:
        """The classes with a base of this name, whatever it is an attribute of."""
        self._load_at(line for line, bases in self._class_headers if base in bases)
        return [n for n, c in self._state.classes.items() if any(b.rpartition(".")[2] == base for b in c.bases)]

    @property
    def _class_headers(self) -> list[tuple[int, str]]:
        """(line, text in parentheses) of every class that has such a text."""
        if self._state.headers is None:
            found, line, position = [], 1, 0
            for match in _CLASS_HEADER.finditer(self._source):
                line += self._source.count("\n", position, match.start())
                position = match.start()
                found.append((line, match.group(1)))
            self._state.headers = found
        return self._state.headers

    def nested(self, name: str) -> list[str]:
        """The qualified names of classes and functions of this name that are not at the top level."""
        inner = self._state.inner
        if name not in inner:
            for keyword in ("def", "class"):
                self._load_at(self._lines_with(f"{keyword} {name}"))
            known = (*self._state.classes, *self._state.definitions)
            inner[name] = [qualname for qualname in known if qualname.endswith(f".{name}")]
        return inner[name]

    def _load_at(self, lines: Iterable[int]) -> None:
        for line in lines:
            blocks = self._state.blocks  # none is left once one of them could not be parsed
            block = blocks[bisect_right(blocks, line, key=_FIRST) - 1] if blocks else None
            if block is not None and block.first <= line <= block.last:
                self._load(block.name)
                for method in self._state.methods.get(block.name, ()):
                    if method.line <= line <= method.last:
                        self._open(method)

    def class_extent(self, name: str) -> tuple[int, int]:
        """First and last line of a class."""
        if name not in self._state.extents:
            self._load_inner(name)
        return self._state.extents[name]

    def class_text(self, class_name: str) -> str:
        first, last = self.class_extent(class_name)
        return self.lines.block(first, last)

    def function_text(self, qualname: str) -> str:
        first, last = self.extent(qualname)
        return self.lines.block(first, last)

    def _lines_with(self, text: str) -> Iterator[int]:
        """The line of each occurrence of a text."""
        position = self._source.find(text)
        while position >= 0:
            yield self.lines.number(position)
            position = self._source.find(text, position + len(text))


def _definition(node: Function, part: Method | Part | None, class_name: str | None, parent: str | None) -> Definition:
    last = node.end_lineno or node.lineno
    return Definition(node.name, node.lineno, last, class_name, parent, part, is_property(node))


def signature_of(node: Function) -> Signature:
    """The signature of a function."""
    params = tuple(a.arg for a in arguments_of(node))
    return Signature(node.lineno, params, dict(defaults_of(node.args)), frozenset(a.arg for a in node.args.kwonlyargs))


@lru_cache(maxsize=50)
def _body(file: Definitions, part: Method | Part | None) -> list[ast.stmt] | None:
    """The statements of a part of a file; None where it cannot be parsed.

    Only those that were read last are kept: all the syntax trees of a run would take more memory than the rest of it.
    """
    tree = file.parsed(part)
    return tree.body if tree is not None else None


def _function_at(body: Iterable[ast.stmt], line: int) -> Function | None:
    """The function whose `def` is on a line."""
    for statement in body:
        if statement.lineno <= line <= (statement.end_lineno or line):
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.lineno == line:
                return statement
            for inner in inner_blocks(statement):
                found = _function_at(inner, line)
                if found is not None:
                    return found
    return None


def _empty_function(name: str, line: int) -> ast.FunctionDef:
    node = ast.parse(f"def {name}(): pass").body[0]  # which fields a definition needs depends on the version of Python
    assert isinstance(node, ast.FunctionDef)
    node.lineno = node.end_lineno = line
    return node
