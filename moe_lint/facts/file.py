"""A file's text -> `FileFacts`: top level at once, classes and functions on demand."""

from __future__ import annotations

import ast
import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import TypeVar

from moe_lint.expressions import FormulaBuilder, NotBoolean, Resolver, boolean_body, dotted, inline, nodes
from moe_lint.facts.alone import only_guards
from moe_lint.facts.class_env import ClassEnv
from moe_lint.facts.conduct import Conduct, ConductReader
from moe_lint.facts.data import AttributeFact, ClassFacts, FunctionFacts, Origins, Paths
from moe_lint.facts.groups import ChoiceReader, GroupChoice
from moe_lint.facts.handed import hands_on
from moe_lint.facts.leaving import Leaving, first_returned, leaving
from moe_lint.facts.outline import Block, Method, local_imports, methods, outline, without
from moe_lint.facts.paths import PathReader
from moe_lint.facts.reader import FileContext, FunctionReader
from moe_lint.facts.state import Definition, FileState, Part, Signature, Unclear, decoded, encoded
from moe_lint.facts.syntax import (
    arguments_of,
    defaults_of,
    import_statements,
    inner_blocks,
    is_property,
)
from moe_lint.formula import TRUE, Formula, nests_too_deeply
from moe_lint.model import SkipReason, Span
from moe_lint.profile import Profile
from moe_lint.source import Lines, SourceError, can_be_parsed, parse, parse_part

#: `self.x = …`, `self.x: X = …`, `for self.x in …`
_ASSIGNED_ATTRIBUTE = re.compile(r"self(?<!\wself)\.(\w+)(?=[^\S\n]*(?:=(?!=)|:.|(?<=\s)in\b))")
#: The keyword comes first and its left edge after it: a pattern that starts with plain text is searched several times
#: faster.
_CLASS_HEADER = re.compile(r"class(?<!\wclass)\s+\w+\s*\(([^:]*)")
#: What may be taken out of a line without losing a target: arguments of a call, and other parentheses without `self`.
_ARGUMENTS = re.compile(r"(?<=[\w)\]])\([^()]*\)|\((?:(?!self\.)[^()])*\)")
_OPEN_CALL = re.compile(r"[\w)\]]\(")
_ASSIGNS = re.compile(r"(?<![=!<>])=(?!=)")
_GOES_ON = re.compile(r"\\\s*$|^\s*self\.\w+\s*:")
#: The end of a target over several lines, `(`, names, `) =`, and what stands before it.
_LONG_TARGET_END = re.compile(r"\n\s*\)\s*=(?!=)")
_LONG_TARGET = re.compile(r"[\w\s.,*\[\]]*")
_ATTRIBUTE = re.compile(r"self(?<!\wself)\.(\w+)")
#: An assignment to one name at the left margin.
_ASSIGNED = re.compile(r"(\w+)\s*(?::[^=]+)?=(?!=)")
#: A predicate in which more conditions have to be read, each once for each way to it, is none that one can look at.
_MAX_CONDITIONS = 500
_FIRST = attrgetter("first")
_Value = TypeVar("_Value")


_Function = ast.FunctionDef | ast.AsyncFunctionDef


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


class FileFacts:
    """What one file says. Its top level is read at once, classes and functions when asked for.

    A release has thousands of functions and a few dozen reductions: parsing and reading only what is on a reduction's
    path is what keeps a cold run fast. A block that does not parse has the whole file parsed; if that fails too,
    ``errors`` says why, and the block stays unknown.
    """

    def __init__(self, path: str, lines: Lines, profile: Profile, kept: memoryview | None = None) -> None:
        """``kept`` is what an earlier run found out about this text, as `kept` gave it.

        Raises ``SourceError`` for a text whose top level cannot be parsed, and ``msgspec.MsgspecError``.
        """
        self.path = path
        self.lines = lines
        self.profile = profile
        self.builder = FormulaBuilder(profile)
        #: what could not be parsed or read so far
        self.errors: list[SourceError] = []
        self._class_envs: dict[str, ClassEnv] = {}
        self._truths: dict[str, Callable[[str, int], Formula]] = {}
        self._state = FileState() if kept is None else decoded(kept, path, self._truth)
        if kept is None:
            self._read_top_level()
        self._kept = kept
        self._answers = self._state.answers
        #: reductions whose guard another reader, too, reads as it is read here
        self.confirmed = self._state.confirmed
        #: local name -> (module as written, with leading dots; imported name, or None for a module)
        self.imports = self._state.imports
        #: local name -> the name that was imported
        self.aliases = self._state.aliases
        self.modules = self._state.modules

    @property
    def _source(self) -> str:
        return self.lines.text

    @cached_property
    def _context(self) -> FileContext:
        """What whoever reads a function has to know of the file."""
        asks_backend = all(word in self._source for word in re.findall(r"\w+", self.profile.backend_getter))
        return FileContext(self.lines, self.profile, self.builder, self.aliases, self.modules, asks_backend)

    def kept(self) -> memoryview | None:
        """What has been found out, for a later run that finds the same text; None if something could not be read."""
        if self.errors:
            return None
        as_it_was = self._kept is not None and self._state.answers == self._answers and not self._truths
        return self._kept if as_it_was else encoded(self._state)

    # --- headers

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

    def _node(self, definition: Definition) -> _Function:
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
                self._state.signatures[qualname] = _signature(node)  # asked for sooner or later, of most
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

    # --- bodies

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
            signatures[qualname] = _signature(self._node(self._functions[qualname]))
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

    def _text_of(self, qualname: str) -> str:
        return self.class_text(qualname) if qualname in self.classes else self.function_text(qualname)

    def holds(self, qualname: str, word: str) -> bool:
        """Whether the text of a class or function holds a word, as part of another one or not."""
        held, key = self._state.held, (qualname, word)
        if key not in held:
            held[key] = word in self._text_of(qualname)
        return held[key]

    def matches(self, qualname: str, pattern: str) -> bool:
        """Whether a pattern occurs in the text of a class or function: looked for, and compiled, once."""
        matched, key = self._state.matched, (qualname, pattern)
        if key not in matched:
            matched[key] = re.search(pattern, self._text_of(qualname)) is not None
        return matched[key]

    def finds(self, qualname: str, pattern: str) -> list[str]:
        """What a pattern of at most one group finds in the text of a class or function, or ("") of the file.

        `^` and `$` are at the ends of lines.
        """
        found, key = self._state.found, (qualname, pattern)
        if key not in found:
            found[key] = re.findall(pattern, self._text_of(qualname) if qualname else self._source, re.MULTILINE)
        return found[key]

    def own_calls(self, class_name: str, method: str) -> int | None:
        """How often a class calls a method on itself; None when it names it in a way that is not understood."""
        known, key = self._state.own_calls, (class_name, method)
        if key not in known:
            known[key] = _own_calls(self.class_text(class_name), re.escape(method))
        return known[key]

    def functions_in(self, class_name: str) -> list[str]:
        """The methods of a class (functions inside them included)."""
        self._load_inner(class_name)
        for definition in self._state.methods.get(class_name, ()):
            self._open(definition)
        return [name for name, d in self._state.definitions.items() if d.class_name == class_name]

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
        first, last = self.class_extent(class_name)
        return [n for n, lines in self._assigning_lines.items() if any(first <= line <= last for line in lines)]

    @property
    def _assigning_lines(self) -> dict[str, list[int]]:
        """Attribute -> the lines that may assign it, told from the text: other bodies need not be read for it."""
        if self._state.assigning is None:
            found: dict[str, list[int]] = {}
            for match in _ASSIGNED_ATTRIBUTE.finditer(self._source):
                found.setdefault(match.group(1), []).append(self.lines.number(match.start()))
            self._state.assigning = found
        return self._state.assigning

    def function(self, qualname: str) -> FunctionFacts:
        """The facts of one function's body. Raises ``KeyError`` for a name that the file does not define."""
        if qualname not in self._state.functions:
            definition = self._functions[qualname]
            if definition.parent is not None:
                self.function(definition.parent)  # reads the nested ones with the locals that they see
            if qualname not in self._state.functions:
                try:
                    self._read_function(qualname, {})
                except RecursionError:
                    self._too_deep(qualname)
                    self._state.functions[qualname] = FunctionFacts.unread(
                        qualname, definition.class_name, definition.line
                    )
        return self._state.functions[qualname]

    def _too_deep(self, qualname: str) -> None:
        line = self._functions[qualname].line
        self.errors.append(SourceError(SkipReason.SYNTAX_ERROR, line, f"`{qualname}` is nested too deeply to be read"))

    def _read_function(self, qualname: str, taint: Mapping[str, Origins]) -> None:
        definition = self._functions[qualname]
        reader = FunctionReader(
            self._context, qualname, definition.class_name, self._env_of(definition.class_name), taint
        )
        node = self._node(definition)
        reader.run(node)
        self._state.functions[qualname] = reader.facts(node)
        self._state.signatures.setdefault(qualname, _signature(node))
        for name, inner in self._state.definitions.items():
            if inner.parent == qualname:
                self._read_function(name, reader.flow.taint)

    def conduct(self, qualname: str) -> Conduct:
        """What one function does as a caller. Raises ``KeyError`` for a name that the file does not define."""
        if qualname not in self._state.conducts:
            definition = self._functions[qualname]
            try:
                self._state.conducts[qualname] = self._conduct_reader(qualname).read(self._node(definition))
            except RecursionError:
                self._too_deep(qualname)
                self._state.conducts[qualname] = Conduct.unread()
        return self._state.conducts[qualname]

    def paths(self, qualname: str) -> Paths:
        """The ways out of one function. Raises ``KeyError`` for a name that the file does not define."""
        if qualname not in self._state.paths:
            definition = self._functions[qualname]
            reader = PathReader(self._context, qualname, definition.class_name, self._env_of(definition.class_name), {})
            try:
                reader.run(self._node(definition))
                self._state.paths[qualname] = reader.paths()
            except RecursionError:
                self._too_deep(qualname)
                self._state.paths[qualname] = Paths((), (), ())
        return self._state.paths[qualname]

    def group_choices(self, qualname: str) -> tuple[tuple[GroupChoice, ...], tuple[str, ...]]:
        """The choices between the sizes of two groups in a function, and all that it calls."""
        choices = self._state.choices
        if qualname not in choices:
            choices[qualname] = self._group_choices(qualname)
        return choices[qualname]

    def _group_choices(self, qualname: str) -> tuple[tuple[GroupChoice, ...], tuple[str, ...]]:
        class_name = self._functions[qualname].class_name
        reader = ChoiceReader(self._context, qualname, class_name, self._env_of(class_name), {})
        try:
            reader.run(self._node(self._functions[qualname]))
        except RecursionError:
            self._too_deep(qualname)
            return (), ()
        return tuple(reader.choices), tuple(reader.called)

    def _conduct_reader(self, qualname: str) -> ConductReader:
        return ConductReader(self._context, self._env_of(self._functions[qualname].class_name), self.path, qualname)

    def _truth(self, qualname: str, number: int) -> Formula:
        """A truth value in a function whose conduct was kept without it."""
        if qualname not in self._truths:
            reader = self._conduct_reader(qualname)
            reader.read(self._node(self._functions[qualname]))
            self._truths[qualname] = reader.terms.of_argument
        return self._truths[qualname](qualname, number)

    def call_condition(self, qualname: str, span: Span) -> Formula:
        """What must hold inside a function for the call at ``span`` to be reached."""
        reached = self._state.reached
        if (qualname, span) not in reached:
            reached[qualname, span] = self._call_condition(qualname, span)
        return reached[qualname, span]

    def _call_condition(self, qualname: str, span: Span) -> Formula:
        definition = self._functions[qualname]
        reader = FunctionReader(self._context, qualname, definition.class_name, self._env_of(definition.class_name), {})
        reader.watch = span
        try:
            reader.run(self._node(definition))
        except RecursionError:
            self._too_deep(qualname)
        return TRUE if reader.watched is None else reader.watched

    def only_guards(self, qualname: str, call: Span, condition: Span) -> bool:
        """Whether a condition in a function decides about the reduction at ``call`` and nothing else."""
        alone, key = self._state.alone, (qualname, call, condition)
        if key not in alone:
            alone[key] = only_guards(self._node(self._functions[qualname]), call, condition, self.lines)
        return alone[key]

    def leaving(self, qualname: str, layers: Collection[Span], leaks: Collection[Span]) -> Leaving | None:
        """Where a function may settle what some layers returned, before some calls hand it on."""
        places, key = self._state.places, (qualname, tuple(sorted(layers)), tuple(sorted(leaks)))
        if key not in places:
            places[key] = leaving(self._node(self._functions[qualname]), layers, leaks, self.lines)
        return places[key]

    def first_returned(self, qualname: str) -> frozenset[str | None]:
        """The names of what a function returns, or of the first part of it."""
        returned = self._state.returned
        if qualname not in returned:
            returned[qualname] = first_returned(self._node(self._functions[qualname]))
        return returned[qualname]

    def patched(self, qualname: str) -> list[tuple[str, str]]:
        """(class, method) of what a module-level function is put in place of.

        By `Block.forward = function`, or by a decorator that is given its name (`"engine.models.m.Block.forward"`).
        """
        patched = self._state.patched
        if qualname not in patched:
            first, _ = self.extent(qualname)
            above = (self.lines[number - 1] for number in range(first - 1, 0, -1))
            decorators = "\n".join(itertools.takewhile(lambda line: line[:1] in ("@", ")", " ", "\t"), above))
            assigned = re.findall(rf"^(\w+)\.(\w+) *= *{re.escape(qualname)} *(?:#|$)", self._source, re.MULTILINE)
            patched[qualname] = assigned + re.findall(r"[\"'][\w.]*\b(\w+)\.(\w+)[\"']", decorators)
        return patched[qualname]

    def stores(self, qualname: str, name: str) -> bool:
        """Whether a function assigns a local, or a parameter another value."""
        stored, key = self._state.stored, (qualname, name)
        if key not in stored:
            named = (n for n in nodes(self._node(self._functions[qualname])) if isinstance(n, ast.Name))
            stored[key] = any(node.id == name and isinstance(node.ctx, ast.Store) for node in named)
        return stored[key]

    def hands_on(self, class_name: str, attribute: str) -> bool:
        """Whether a class hands on what ``self.attribute`` holds, so that somebody else may run it."""
        handed, key = self._state.handed, (class_name, attribute)
        if key not in handed:
            name = f"self.{attribute}"
            handed[key] = any(
                name in self.function_text(qualname) and hands_on(self._node(self._functions[qualname]), name)
                for qualname in self.functions_in(class_name)
            )
        return handed[key]

    def condition(self, qualname: str) -> Formula:
        """The truth value that a function returns. Raises ``NotBoolean``."""
        conditions = self._state.conditions
        if qualname not in conditions:
            try:
                conditions[qualname] = self._condition(qualname)
            except NotBoolean as error:
                conditions[qualname] = Unclear(error.line, error.what)
        found = conditions[qualname]
        if isinstance(found, Unclear):
            raise NotBoolean(found.line, found.what)
        return found

    def _condition(self, qualname: str) -> Formula:
        definition = self._functions[qualname]
        class_env = self._env_of(definition.class_name)
        read = itertools.count(1)

        def build(expression: ast.expr, local: Mapping[str, ast.expr]) -> Formula:
            if next(read) > _MAX_CONDITIONS:  # what stands behind an `if` that does not leave is read once for each way
                raise NotBoolean(definition.line, "the body branches too often for a boolean function")
            resolver = Resolver(class_env, self.aliases, self.modules, self.profile)
            formula = self.builder.build(resolver.resolve(inline(expression, local)))
            if nests_too_deeply(formula):
                raise NotBoolean(definition.line, "a condition is nested too deeply for a boolean function")
            return formula

        body = self._node(definition).body
        if len(body) > 24:
            raise NotBoolean(definition.line, "the body is too long for a boolean function")
        return boolean_body(body, build)

    def _env_of(self, class_name: str | None) -> Callable[[str], ast.expr | None]:
        if class_name is None:
            return lambda text: None
        if class_name not in self._class_envs:
            self._class_envs[class_name] = self._new_class_env(class_name)
        return self._class_envs[class_name].get

    def _new_class_env(self, class_name: str) -> ClassEnv:
        self.class_extent(class_name)

        def named(name: str) -> list[Definition]:
            return [d for d in self._state.methods[class_name] if d.name == name]

        def assigning(name: str) -> list[Definition]:
            lines = self._lines_that_may_assign(name)
            return [d for d in self._state.methods[class_name] if any(d.line <= n <= d.last for n in lines)]

        def set_elsewhere(name: str) -> bool:
            return re.search(rf"\.{name}(?<!\bself\.{name}) *=(?!=)", self._source) is not None

        return ClassEnv(named, assigning, set_elsewhere, self._node)

    def _lines_that_may_assign(self, name: str) -> list[int]:
        """Every line that could assign an attribute, and more: whoever assigns it is among them."""
        attribute = f"self.{name}"
        lines = dict.fromkeys(self._lines_with(attribute))
        found = [n for n in lines if name in _ATTRIBUTE.findall(_targets(self.lines[n - 1]))]
        return found + [n for n, target in self._long_targets if name in _ATTRIBUTE.findall(target)]

    @cached_property
    def _long_targets(self) -> list[tuple[int, str]]:
        """(first line, text) of each target over several lines."""
        found = []
        for end in _LONG_TARGET_END.finditer(self._source):
            start = self._source.rfind("(", 0, end.start())
            target = self._source[start + 1 : end.start()]
            if start >= 0 and _LONG_TARGET.fullmatch(target) and not _is_word(self._source[start - 1 : start]):
                found.append((self._source.count("\n", 0, start) + 1, target))
        return found

    def _lines_with(self, text: str) -> Iterator[int]:
        """The line of each occurrence of a text."""
        position = self._source.find(text)
        while position >= 0:
            yield self.lines.number(position)
            position = self._source.find(text, position + len(text))


def _own_calls(text: str, name: str) -> int | None:
    """How often a text calls a method on `self` or `super()`; None when it names it in another way than that."""
    behind = (rf"(?<=(?<![\w.]){receiver}\.{name})" for receiver in ("self", r"super\(\)"))
    # on the spot, or a local that is called later; what is plain text comes first, so that it is searched for
    calls = len(re.findall(rf"{name}(?!\w)(?:{'|'.join(behind)})", text))
    named = len(re.findall(rf"{name}(?<!\w{name})(?!\w)", text))
    return calls if named == calls + len(re.findall(rf"def\s+{name}\s*\(", text)) else None


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _targets(line: str) -> str:
    """The part of a line in which the targets of an assignment stand: before its last `=`, outside of calls."""
    if "=" not in line:
        return line if _GOES_ON.search(line) else ""
    while "(" in line and (shorter := _ARGUMENTS.sub("", line)) != line:
        line = shorter
    equals = [match.start() for match in _ASSIGNS.finditer(line)]
    if not equals or _GOES_ON.search(line):
        return line if _GOES_ON.search(line) else ""
    return _OPEN_CALL.split(line[: equals[-1]], maxsplit=1)[0]


def _definition(node: _Function, part: Method | Part | None, class_name: str | None, parent: str | None) -> Definition:
    last = node.end_lineno or node.lineno
    return Definition(node.name, node.lineno, last, class_name, parent, part, is_property(node))


def _signature(node: _Function) -> Signature:
    params = tuple(a.arg for a in arguments_of(node))
    return Signature(node.lineno, params, dict(defaults_of(node.args)), frozenset(a.arg for a in node.args.kwonlyargs))


@lru_cache(maxsize=50)
def _body(file: FileFacts, part: Method | Part | None) -> list[ast.stmt] | None:
    """The statements of a part of a file; None where it cannot be parsed.

    Only those that were read last are kept: all the syntax trees of a run would take more memory than the rest of it.
    """
    tree = file.parsed(part)
    return tree.body if tree is not None else None


def _function_at(body: Iterable[ast.stmt], line: int) -> _Function | None:
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
