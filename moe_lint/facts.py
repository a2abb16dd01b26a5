"""A parsed file -> FileFacts: what it says about reductions, guards, operands, classes and predicates.

Reads with `ast`, looks into no other file; what it hands out (`FunctionFacts`, `Formula`) holds no syntax node. Names
that only another file can explain stay symbolic (`CallResult`, base names, import targets); `index` resolves them.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

from moe_lint.expressions import (
    FormulaBuilder,
    NotBoolean,
    Resolver,
    boolean_body,
    dotted,
    inline,
    is_condition,
    unparse,
)
from moe_lint.formula import TRUE, Atom, Formula, Or, choose, conj, negate
from moe_lint.model import Axis, Span
from moe_lint.profile import Profile

# --- operands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Experts:
    """The value comes out of the experts themselves."""

    via: str


@dataclass(frozen=True, slots=True)
class Param:
    """The value is what the caller passed for this parameter."""

    name: str


@dataclass(frozen=True, slots=True)
class CallResult:
    """The value is (element ``element`` of) what ``callee`` returned, given values of the origins ``inputs``."""

    callee: str
    element: int | None
    inputs: frozenset[Origin]
    #: the callee's own name says that it is the experts
    named_experts: bool


Origin = Experts | Param | CallResult
Origins = frozenset[Origin]
NOTHING: Origins = frozenset()

# --- facts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GuardPart:
    """One condition that controls a site. ``formula`` is what must hold for the site to be reached."""

    text: str
    polarity: bool
    kind: str  # if, else, early-exit, ternary, and, or, while
    span: Span
    formula: Formula
    #: the operands of the top-level `and` (`or`, where the condition must be false): text, and what must hold
    operands: tuple[tuple[str, Formula], ...] = ()
    #: `operands` are joined by `and` (each must hold), else by `or` (none may)
    positive: bool = True
    #: where the operands stand when the condition is a local that only this test reads: the value assigned to it
    carrier: Span | None = None
    #: the whole `if` statement
    statement: Span | None = None
    #: the guarded block holds nothing but one statement, so its condition may be rewritten
    exclusive: bool = False
    #: the condition alone decides; not so where only some paths through an `if` above leave the function
    plain: bool = True


@dataclass(frozen=True, slots=True)
class RawSite:
    """One all-reduce-like call as its own file shows it."""

    span: Span
    callee: str
    collective: str
    axis: Axis
    function: str
    class_name: str | None
    guard: tuple[GuardPart, ...]
    origins: Origins
    #: spelling of each layer-context flag that is a parameter or a local here
    flags: tuple[str, ...]
    statement: Span
    #: how the call stands in its statement: assign (`x = f(x)`), return, consumed (by a norm, on the spot) or other
    shape: str
    operand: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call: its keyword (None: positional), text, formula (for conditions) and origins."""

    keyword: str | None
    text: str
    literal: bool | None
    origins: Origins


@dataclass(frozen=True, slots=True)
class CallFact:
    """A call that hands on a tensor that may come from the experts, or a layer-context flag."""

    callee: str
    span: Span
    function: str
    class_name: str | None
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class AttributeFact:
    """One assignment to ``self.name``: which constructors its value calls, and under which condition."""

    name: str
    callees: tuple[str, ...]
    alias: str | None
    condition: Formula
    function: str


@dataclass(frozen=True, slots=True)
class BackendTest:
    """A disjunction of a2a backend questions, `get_moe_a2a_backend().is_x() or …`, that was written out by hand."""

    members: frozenset[str]
    span: Span
    function: str
    class_name: str | None
    #: methods of the same class that are called in the statement
    chooses: frozenset[str]
    #: the statement leaves the function, so it decides about everything below it
    leaves: bool


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """What the body of one function (with the functions inside it left out) does."""

    name: str
    qualname: str
    class_name: str | None
    line: int
    params: tuple[str, ...]
    #: parameters that have a default -> the default when it is a truth value, else None
    defaults: Mapping[str, bool | None]
    #: per return statement, the origins of its elements (one, or those of a tuple)
    returns: tuple[tuple[Origins, ...], ...]
    sites: tuple[RawSite, ...]
    calls: tuple[CallFact, ...]
    attributes: tuple[AttributeFact, ...]
    #: every constructor-like callee
    builds: tuple[str, ...]
    backend_tests: tuple[BackendTest, ...]


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """A class as its header and its method names show it."""

    name: str
    line: int
    bases: tuple[str, ...]
    methods: frozenset[str]
    properties: frozenset[str]


#: Attributes of a tensor that are not the tensor's values.
_NOT_DATA = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout"})
#: Calls on tensors whose result does not hold the tensor's values.
_NO_VALUES = frozenset(
    {
        "size",
        "dim",
        "numel",
        "empty_like",
        "zeros_like",
        "ones_like",
        "isinstance",
        "hasattr",
        "len",
        "type",
        "data_ptr",
        "is_contiguous",
        "new_empty",
        "new_zeros",
        "element_size",
        "stride",
    }
)
#: `self.x = …`, `self.x: X = …`, `for self.x in …`
_ASSIGNED_ATTRIBUTE = re.compile(r"\bself\.(\w+)(?=\s*=(?!=)|\s*:.|\s+in\b)")
_IMPORT = re.compile(r"import\b")
#: The first line of a function or class.
_HEADER = re.compile(r"^[ \t\f]*(?:async[ \t]+def|def|class)\b", re.MULTILINE)
#: A name that says "this is an all-reduce".
_REDUCTION = re.compile(r"(?:^|_)all_?reduce_?$", re.IGNORECASE)
_NOT_A_REDUCTION = re.compile(
    r"^_*(?:should|can|is|has|use|uses|add|register|get|set|init|compile|enable|disable|skip|test|make|create|build)_"
)
_GROUP_AXIS = (
    (re.compile(r"(?:^|_)(?:ep|expert|expert_parallel)(?:_|$)"), "EP"),
    (re.compile(r"(?:^|_)(?:attn|attention|dp|pp|cp)(?:_|$)"), "other"),
    (re.compile(r"(?:^|_)(?:tp|tensor|tensor_parallel|tensor_model_parallel)(?:_|$)"), "TP"),
)


def span_of(node: ast.expr | ast.stmt, lines: list[str]) -> Span:
    """The span of a node, with columns in characters (ast counts UTF-8 bytes)."""

    def column(line: int, offset: int) -> int:
        text = lines[line - 1] if line <= len(lines) else ""
        return offset + 1 if text.isascii() else len(text.encode()[:offset].decode(errors="ignore")) + 1

    end_line = node.end_lineno or node.lineno
    return Span(node.lineno, column(node.lineno, node.col_offset), end_line, column(end_line, node.end_col_offset or 0))


def is_reduction_name(name: str) -> bool:
    """Whether a function's name says that it is an all-reduce (`all_reduce`, `symm_mem_all_reduce`)."""
    return _REDUCTION.search(name) is not None and _NOT_A_REDUCTION.match(name) is None


def group_axis(text: str) -> Axis:
    """The axis of a process group, from the words in its name: `get_moe_ep_group()` -> EP."""
    words = re.sub(r"[^0-9a-z]+", "_", text.lower())
    for pattern, axis in _GROUP_AXIS:
        if pattern.search(words):
            return axis  # type: ignore[return-value]
    return "other"


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
        #: whether any condition in the file can ask for the a2a backend
        self.asks_backend = all(word in source for word in re.findall(r"\w+", profile.backend_getter))
        self._import_lines = _lines_with(_IMPORT, source)
        self._header_lines = _lines_with(_HEADER, source)
        self._definitions: dict[str, _Definition] = {}
        self._class_nodes: dict[str, ast.ClassDef] = {}
        self._class_envs: dict[str, _ClassEnv] = {}
        self._read: dict[str, FunctionFacts] = {}
        self._conditions: dict[str, Formula | NotBoolean] = {}
        self._read_imports(tree)
        self._headers(tree.body, None, None, "")

    # --- headers

    def _read_imports(self, tree: ast.Module) -> None:
        """Imports anywhere in the file: function-local ones name the same things."""
        modules: set[str] = set()
        ambiguous: set[str] = set()
        for node in _imports(tree, self._import_lines):
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
                for inner in _inner_blocks(statement):
                    self._headers(inner, class_name, parent, prefix)

    def _holds_header(self, statement: ast.stmt) -> bool:
        """Whether a function or class is defined inside a statement."""
        return _holds_line(self._header_lines, statement.lineno + 1, statement.end_lineno)

    def _class_header(self, node: ast.ClassDef, parent: str | None, prefix: str) -> None:
        qualname = f"{prefix}{node.name}"
        methods = [s for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)]
        self._class_nodes[qualname] = node
        self.classes[qualname] = ClassFacts(
            qualname,
            node.lineno,
            tuple(text for base in node.bases if (text := dotted(base)) is not None),
            frozenset(m.name for m in methods),
            frozenset(m.name for m in methods if _is_property(m)),
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
        return node.lineno, tuple(a.arg for a in _arguments(node)), dict(_defaults(node.args))

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
        reader = _FunctionReader(self, qualname, definition.class_name, self._env_of(definition.class_name), taint)
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
        values = [self._returned(m) for m in self._methods if m.name == name and _is_property(m)]
        values += [self._portable(method, value) for method, value in self._assignments.get(name, ())]
        value = values[0] if len(values) == 1 else None
        return value if value is not None and is_condition(value) else None

    @cached_property
    def _assignments(self) -> dict[str, list[tuple[ast.FunctionDef, ast.expr | None]]]:
        """Attribute -> (method, value) of each assignment; no value where it is not a plain unconditional one."""
        found: dict[str, list[tuple[ast.FunctionDef, ast.expr | None]]] = {}
        for method in self._methods:
            for name, value in _self_assignments(method):
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
            self._locals[method.name] = stored | {a.arg for a in _arguments(method)} - {"self"}
        local = self._locals[method.name]
        return None if any(isinstance(n, ast.Name) and n.id in local for n in ast.walk(value)) else value


@dataclass(slots=True)
class _Flow:
    """What is known at one point of a function: values of names, and what each tensor was made from."""

    env: dict[str, ast.expr] = field(default_factory=dict)
    #: local -> the expression that was assigned to it, as written
    carriers: dict[str, ast.expr] = field(default_factory=dict)
    taint: dict[str, Origins] = field(default_factory=dict)

    def copy(self) -> _Flow:
        return _Flow(dict(self.env), dict(self.carriers), dict(self.taint))


class _Condition:
    """One condition around the point that is read, under the locals that it sees.

    Most conditions surround no reduction: the formula and the `GuardPart` are built when a site asks for them.
    """

    def __init__(
        self,
        reader: _FunctionReader,
        test: ast.expr,
        polarity: bool,
        kind: str,
        formula: Callable[[], Formula] | None = None,
        statement: ast.stmt | None = None,
        exclusive: bool = False,
        plain: bool = True,
    ) -> None:
        self._reader = reader
        self._test = test
        self._polarity = polarity
        self._kind = kind
        self._formula = formula
        self._statement = statement
        self._exclusive = exclusive
        self._plain = plain
        self._env = dict(reader.flow.env)
        self._carriers = dict(reader.flow.carriers)

    @cached_property
    def formula(self) -> Formula:
        if self._formula is not None:
            return self._formula()
        return self._built(self._test, self._polarity)

    @cached_property
    def part(self) -> GuardPart:
        """The condition as a site records it. A local that only this test reads stands for what is assigned to it."""
        lines = self._reader.file.lines
        written, positive = self._test, self._polarity
        while isinstance(written, ast.UnaryOp) and isinstance(written.op, ast.Not):
            written, positive = written.operand, not positive
        carrier = None
        local = written.id if isinstance(written, ast.Name) and written.id in self._carriers else None
        if local is not None and self._reader.names.get(local) == 1:
            written = self._carriers[local]
            carrier = span_of(written, lines)
        else:
            written, positive = self._test, self._polarity
        join = ast.And if positive else ast.Or
        parts = written.values if isinstance(written, ast.BoolOp) and isinstance(written.op, join) else [written]
        return GuardPart(
            unparse(self._test),
            self._polarity,
            self._kind,
            span_of(self._test, lines),
            self.formula,
            tuple((unparse(part), self._built(part, positive)) for part in parts),
            positive,
            carrier,
            span_of(self._statement, lines) if self._statement is not None else None,
            self._exclusive,
            self._plain,
        )

    def _built(self, node: ast.expr, polarity: bool) -> Formula:
        formula = self._reader.formula(node, self._env)
        return formula if polarity else negate(formula)


class _FunctionReader:
    """Walks one function in execution order, keeping the guard, the locals' values and the tensors' origins."""

    def __init__(
        self,
        file: FileFacts,
        qualname: str,
        class_name: str | None,
        class_env: Callable[[str], ast.expr | None],
        taint: Mapping[str, Origins],
    ) -> None:
        self.file = file
        self.profile = file.profile
        self.qualname = qualname
        self.class_name = class_name
        self.class_env = class_env
        self.flow = _Flow({}, {}, dict(taint))
        self.guard: list[_Condition | GuardPart] = []
        #: in a first pass over a loop, which is run for its effect on the flow only
        self.quiet = False
        self.returns: list[tuple[Origins, ...]] = []
        self.sites: list[RawSite] = []
        self.calls: list[CallFact] = []
        self.attributes: list[AttributeFact] = []
        self.builds: dict[str, None] = {}
        self.backend_tests: list[BackendTest] = []
        self.params: tuple[str, ...] = ()
        self.assigned: set[str] = set()
        self.statement: ast.stmt | None = None
        self.node: ast.AST | None = None
        self.consumers = 0

    def facts(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> FunctionFacts:
        return FunctionFacts(
            node.name,
            self.qualname,
            self.class_name,
            node.lineno,
            self.params,
            dict(_defaults(node.args)),
            tuple(self.returns),
            tuple(self.sites),
            tuple(self.calls),
            tuple(self.attributes),
            tuple(self.builds),
            tuple(self.backend_tests),
        )

    # --- statements

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.params = tuple(a.arg for a in _arguments(node))
        self.node = node
        for name in self.params:
            self.flow.taint[name] = frozenset({Param(name)}) if name != "self" else NOTHING
        self.assigned.update(self.params)
        self.block(node.body)

    @cached_property
    def names(self) -> dict[str, int]:
        """How often each name is read: a local condition that is read once may be rewritten where it is assigned."""
        assert self.node is not None
        return Counter(n.id for n in ast.walk(self.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))

    def block(self, body: list[ast.stmt]) -> tuple[bool, list[_Condition | GuardPart]]:
        """Run a block. Returns whether it always leaves, and the conditions under which it falls through."""
        depth = len(self.guard)
        left = False
        for statement in body:
            if left:
                break
            left = self.run_statement(statement, body)
        through = self.guard[depth:]
        del self.guard[depth:]
        return left, through

    def run_statement(self, statement: ast.stmt, body: list[ast.stmt]) -> bool:
        self.statement = statement
        if isinstance(statement, ast.If):
            return self._if(statement)
        if isinstance(statement, ast.Return):
            if statement.value is not None:
                self.expression(statement.value)
                if not self.quiet:
                    self.returns.append(self._elements(statement.value))
            return True
        if isinstance(statement, ast.Raise | ast.Continue | ast.Break):
            return True
        if isinstance(statement, ast.Assign):
            self.expression(statement.value)
            for target in statement.targets:
                self._assign(target, statement.value)
        elif isinstance(statement, ast.AnnAssign):
            if statement.value is not None:
                self.expression(statement.value)
                self._assign(statement.target, statement.value)
        elif isinstance(statement, ast.AugAssign):
            self.expression(statement.value)
            key = dotted(statement.target)
            if key is not None:
                self.flow.taint[key] = self.origins(statement.target) | self.origins(statement.value)
                self.flow.env.pop(key, None)
        elif isinstance(statement, ast.Expr):
            self.expression(statement.value)
        elif isinstance(statement, ast.For | ast.AsyncFor | ast.While):
            self._loop(statement)
        elif isinstance(statement, ast.With | ast.AsyncWith):
            for item in statement.items:
                self.expression(item.context_expr)
                if isinstance(item.optional_vars, ast.Name):
                    self._assign(item.optional_vars, item.context_expr)
            return self._inline_block(statement.body)
        elif isinstance(statement, ast.Try) or type(statement).__name__ == "TryStar":
            return self._try(statement)
        elif isinstance(statement, ast.Match):
            return self._match(statement)
        elif isinstance(statement, ast.Assert):
            self.expression(statement.test)
        elif isinstance(statement, ast.Delete):
            for target in statement.targets:
                key = dotted(target)
                if key is not None:
                    self.flow.env.pop(key, None)
        return False

    def _inline_block(self, body: list[ast.stmt]) -> bool:
        """A block that is always run (``with``, ``try``): its early exits hold after it, too."""
        return any(self.run_statement(statement, body) for statement in body)

    def _if(self, statement: ast.If) -> bool:
        test = statement.test
        self.expression(test)
        before = self.flow.copy()
        alone = len(statement.body) == 1 and not statement.orelse
        condition = _Condition(self, test, True, "if", None, statement, alone)
        self.guard.append(condition)
        left_then, through_then = self.block(statement.body)
        self.guard.pop()
        if self.file.asks_backend and not self.quiet:
            self._note_backends(statement, condition.formula, left_then)
        then, self.flow = self.flow, before
        left_else, through_else = False, list[_Condition | GuardPart]()
        if statement.orelse:
            passes = all(isinstance(s, ast.Pass) for s in statement.body)
            alone_else = len(statement.orelse) == 1 and passes
            otherwise = _Condition(self, test, False, "else", lambda: negate(condition.formula), statement, alone_else)
            self.guard.append(otherwise)
            left_else, through_else = self.block(statement.orelse)
            self.guard.pop()
        if left_then and left_else:
            return True
        then_holds, else_holds = partial(_all_of, through_then), partial(_all_of, through_else)
        if left_then:

            def through() -> Formula:
                return conj((negate(condition.formula), else_holds()))

            self.guard.append(
                _Condition(self, test, False, "early-exit", through, statement, alone, not statement.orelse)
            )
        elif left_else:
            self.flow = then

            def through() -> Formula:
                return conj((condition.formula, then_holds()))

            self.guard.append(_Condition(self, test, True, "early-exit", through, statement, plain=False))
        else:
            self.flow = self._merge(test, then, self.flow)
            if then_holds() != TRUE or else_holds() != TRUE:

                def through() -> Formula:
                    return choose(condition.formula, then_holds(), else_holds())

                self.guard.append(_Condition(self, test, True, "early-exit", through, statement, plain=False))
        return False

    def _loop(self, statement: ast.For | ast.AsyncFor | ast.While) -> None:
        if isinstance(statement, ast.While):
            self.expression(statement.test)
            self.guard.append(_Condition(self, statement.test, True, "while"))
        else:
            self.expression(statement.iter)
            self._assign_elements(statement.target, statement.iter)
        before = self.flow.copy()
        self._quiet(statement.body)  # what a first pass leaves behind is what the second one meets
        self.flow = self._merge(None, self.flow, before)
        self.block(statement.body)
        self.flow = self._merge(None, self.flow, before)
        if isinstance(statement, ast.While):
            self.guard.pop()
        self.block(statement.orelse)

    def _assign_elements(self, target: ast.expr, iterable: ast.expr) -> None:
        """The target of a loop; `enumerate` and `zip` hand on the elements of what they are given."""
        name = iterable.func.id if isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) else ""
        if isinstance(iterable, ast.Call) and isinstance(target, ast.Tuple) and name in ("enumerate", "zip"):
            sources = [ast.Constant(0), *iterable.args[:1]] if name == "enumerate" else iterable.args
            for element, source in zip(target.elts, sources, strict=False):
                self._assign(element, source)
        else:
            self._assign(target, iterable)

    def _quiet(self, body: list[ast.stmt]) -> None:
        """Run a block for its effect on the flow only."""
        outer, self.quiet = self.quiet, True
        self.block(body)
        self.quiet = outer

    def _try(self, statement: ast.stmt) -> bool:
        body: list[ast.stmt] = getattr(statement, "body", [])
        before = self.flow.copy()
        left = self._inline_block(body)
        after = self.flow
        for handler in getattr(statement, "handlers", []):
            self.flow = before.copy()
            left_handler, _ = self.block(handler.body)
            if not left_handler:
                after = self._merge(None, after, self.flow)
                left = False
        self.flow = after
        if not left:
            left = self._inline_block(getattr(statement, "orelse", []))
        return self._inline_block(getattr(statement, "finalbody", [])) or left

    def _match(self, statement: ast.Match) -> bool:
        self.expression(statement.subject)
        subject = ast.unparse(statement.subject)
        before = self.flow.copy()
        merged: _Flow | None = None
        leaving: list[Formula] = []
        open_cases = TRUE  # no case so far has matched
        for case in statement.cases:
            self.flow = before.copy()
            pattern = case.pattern
            wildcard = isinstance(pattern, ast.MatchAs) and pattern.pattern is None
            value = pattern.value if isinstance(pattern, ast.MatchValue) else ast.Name(ast.unparse(pattern), ast.Load())
            test: ast.expr = ast.Compare(statement.subject, [ast.Eq()], [value])
            matched = TRUE if wildcard else self.formula(test)
            if case.guard is not None:
                self.expression(case.guard)
                matched = conj((matched, self.formula(case.guard)))
            taken = conj((open_cases, matched))
            open_cases = conj((open_cases, negate(matched)))
            text, span = f"{subject} == {ast.unparse(pattern)}", span_of(statement.subject, self.file.lines)
            self.guard.append(GuardPart(text, True, "case", span, taken, plain=False))
            left, _ = self.block(case.body)
            self.guard.pop()
            if left:
                leaving.append(negate(taken))
            else:
                merged = self.flow if merged is None else self._merge(None, merged, self.flow)
        self.flow = before if merged is None else self._merge(None, merged, before)
        if leaving:
            through = conj(leaving)
            span = span_of(statement.subject, self.file.lines)
            self.guard.append(GuardPart(subject, False, "early-exit", span, through, plain=False))
        return False

    def _merge(self, test: ast.expr | None, one: _Flow, other: _Flow) -> _Flow:
        merged = _Flow(taint=dict(one.taint))
        for name, origins in other.taint.items():
            if merged.taint.setdefault(name, origins) is not origins:
                merged.taint[name] |= origins
        asked: ast.expr | None = None
        for name, value in one.env.items():
            second = other.env.get(name)
            if second is value:
                merged.env[name] = value
            elif second is not None and test is not None:
                asked = asked or self.resolve(test)
                both = ast.IfExp(asked, value, second)
                if is_condition(both):
                    merged.env[name] = both
        for name, written in one.carriers.items():
            if other.carriers.get(name) is written:
                merged.carriers[name] = written
        return merged

    # --- assignments

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            taints = [
                self.origins(value.elts[i])
                if same and isinstance(value, ast.Tuple | ast.List)
                else self.origins(value, i)
                for i in range(len(target.elts))
            ]
            for position, element in enumerate(target.elts):
                key = dotted(element)
                if key is None:
                    continue
                self.assigned.add(key)
                self.flow.env.pop(key, None)
                self.flow.taint[key] = taints[position]
                if same and isinstance(value, ast.Tuple | ast.List):
                    self._bind(key, value.elts[position])
            return
        key = dotted(target)
        if key is None:
            return
        if isinstance(target, ast.Subscript):
            self.flow.taint[key] = self.flow.taint.get(key, NOTHING) | self.origins(value)
            return
        self.assigned.add(key)
        taint = self.origins(value)
        if key.startswith("self.") and key.count(".") == 1 and not self.quiet:
            self._note_attribute(key[5:], value)
        self._bind(key, value)
        self.flow.taint[key] = taint

    def _bind(self, key: str, value: ast.expr) -> None:
        resolved = self.resolve(value) if is_condition(value) else None  # in terms of what the name was before
        self.flow.env.pop(key, None)
        self.flow.carriers.pop(key, None)
        if resolved is None or key in self.profile.flag_names or key.startswith("self."):
            return  # what `self.x` stands for is the class's business: other methods see it too
        if is_condition(resolved) and not _names(resolved, key):
            self.flow.env[key] = resolved
            self.flow.carriers[key] = value

    def _note_attribute(self, name: str, value: ast.expr) -> None:
        callees = tuple(
            dict.fromkeys(
                text for n in ast.walk(value) if isinstance(n, ast.Call) and (text := dotted(n.func)) is not None
            )
        )
        # a class passed by reference, as in `layer_class = Block` then `self.mlp = layer_class(…)`
        callees = tuple(self._class_behind(text) for text in callees)
        alias = dotted(value) if isinstance(value, ast.Attribute | ast.Name) else None
        condition = conj(part.formula for part in self.guard)
        self.attributes.append(AttributeFact(name, callees, alias, condition, self.qualname))

    def _class_behind(self, text: str) -> str:
        value = self.flow.env.get(text)
        return (dotted(value) if value is not None else None) or text

    # --- expressions

    def resolve(self, node: ast.expr, env: Mapping[str, ast.expr] | None = None) -> ast.expr:
        """``node`` with names replaced by what they stand for in ``env``, by default here."""
        known = self.flow.env if env is None else env

        def lookup(text: str) -> ast.expr | None:
            value = known.get(text)
            return self.class_env(text) if value is None else value

        return Resolver(lookup, self.file.aliases, self.file.modules, self.profile).resolve(node)

    def formula(self, node: ast.expr, env: Mapping[str, ast.expr] | None = None) -> Formula:
        return self.file.builder.build(self.resolve(node, env))

    def expression(self, node: ast.expr) -> None:
        """Record the reductions and the calls in an expression, with the conditions inside it."""
        if isinstance(node, ast.IfExp):
            self.expression(node.test)
            for branch, polarity in ((node.body, True), (node.orelse, False)):
                self.guard.append(_Condition(self, node.test, polarity, "ternary", None, None, True))
                self.expression(branch)
                self.guard.pop()
            return
        if isinstance(node, ast.BoolOp):
            depth = len(self.guard)
            polarity = isinstance(node.op, ast.And)
            for value in node.values:
                self.expression(value)
                self.guard.append(_Condition(self, value, polarity, "and" if polarity else "or"))
            del self.guard[depth:]
            return
        if isinstance(node, ast.Lambda):
            self._lambda(node)
            return
        if isinstance(node, ast.Call):
            self._call(node)
            return
        if isinstance(node, ast.NamedExpr):
            self.expression(node.value)
            self._assign(node.target, node.value)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expression(child)
            elif isinstance(child, ast.comprehension):
                self.expression(child.iter)

    def _lambda(self, node: ast.Lambda) -> None:
        saved, self.flow = self.flow, self.flow.copy()
        name, self.qualname = self.qualname, f"{self.qualname}.<lambda>"
        for argument in node.args.args:
            self.flow.env.pop(argument.arg, None)
            self.flow.taint[argument.arg] = frozenset({Param(argument.arg)})
        self.expression(node.body)
        self.flow, self.qualname = saved, name

    def _call(self, node: ast.Call) -> None:
        self.expression(node.func) if not isinstance(node.func, ast.Name | ast.Attribute) else None
        if isinstance(node.func, ast.Attribute):
            self.expression(node.func.value)
        callee = self._callee(node)
        # what a norm consumes must be whole: nobody further down can sum it
        consumed = callee is not None and self.profile.is_barrier(callee.rsplit(".", 1)[-1])
        self.consumers += consumed
        for value in (*node.args, *(k.value for k in node.keywords)):
            self.expression(value.value if isinstance(value, ast.Starred) else value)
        self.consumers -= consumed
        if callee is None:
            return
        last = callee.rsplit(".", 1)[-1]
        self._in_place(node, last)
        axis = self._axis(node, callee, last)
        if axis is not None:
            if not self.quiet:
                self._site(node, callee, last, axis)
            return
        if not self.quiet:
            self._note_call(node, callee)
        if last[:1].isupper() or last.lstrip("_")[:1].isupper():
            self.builds[callee] = None

    def _note_call(self, node: ast.Call, callee: str) -> None:
        arguments = self._arguments(node)
        flagged = any(a.keyword in self.profile.flag_names or a.text in self.profile.flag_names for a in arguments)
        if flagged or any(a.origins for a in arguments):
            self.calls.append(
                CallFact(callee, span_of(node, self.file.lines), self.qualname, self.class_name, arguments)
            )

    def _callee(self, node: ast.Call) -> str | None:
        """The dotted name that is called, with local aliases of modules and functions resolved."""
        text = dotted(node.func)
        if text is None:
            return node.func.attr if isinstance(node.func, ast.Attribute) else None
        head, _, rest = text.partition(".")
        value = self.flow.env.get(head)
        known = dotted(value) if value is not None else None
        if known is not None:
            return f"{known}.{rest}" if rest else known
        alias = self.file.aliases.get(head)
        return text if alias is None else f"{alias}.{rest}" if rest else alias

    def _arguments(self, node: ast.Call) -> tuple[Argument, ...]:
        found = []
        for keyword, value in (*((None, a) for a in node.args), *((k.arg, k.value) for k in node.keywords)):
            literal = value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None
            text = value.id if isinstance(value, ast.Name) else ""
            found.append(Argument(keyword, text, literal, self.origins(value)))
        return tuple(found)

    def _axis(self, node: ast.Call, callee: str, last: str) -> Axis | None:
        """The axis when this call is a reduction, None when it is not one."""
        if last in self.profile.collectives:
            return self.profile.collectives[last]
        if last in self.profile.wrappers:
            return "TP"
        if not is_reduction_name(last):
            return None
        groups = [ast.unparse(k.value) for k in node.keywords if k.arg == "group"]
        if isinstance(node.func, ast.Attribute):
            groups.append(ast.unparse(node.func.value))
        for group in groups:
            axis = group_axis(group)
            if axis != "other":
                return axis
        return group_axis(last)

    def _site(self, node: ast.Call, callee: str, last: str, axis: Axis) -> None:
        values = [*node.args, *(k.value for k in node.keywords)]
        operand = values[0] if values else None
        statement = self.statement
        assert statement is not None
        shape, target = ("consumed", None) if self.consumers else _shape(statement, node)
        spellings = sorted({n for n in self.assigned if n in self.profile.flag_names})
        self.sites.append(
            RawSite(
                span_of(node, self.file.lines),
                callee,
                last,
                axis,
                self.qualname,
                self.class_name,
                tuple(part if isinstance(part, GuardPart) else part.part for part in self.guard),
                self.origins(operand) if operand is not None else NOTHING,
                tuple(spellings),
                span_of(statement, self.file.lines),
                shape,
                ast.unparse(operand) if operand is not None else "",
                target,
            )
        )

    def _in_place(self, node: ast.Call, last: str) -> None:
        """`shared.add_(routed)`, `torch.add(…, out=x)`: calls that change what a name holds."""
        changed = [keyword.value for keyword in node.keywords if keyword.arg == "out"]
        in_place = last.endswith("_") and not last.endswith("__")
        if not changed and not in_place:
            return
        given = _union(self.origins(a) for a in node.args)
        for value in changed:
            key = dotted(value)
            if key is not None:
                self.flow.taint[key] = self.origins(value) | given
        if in_place and isinstance(node.func, ast.Attribute):
            key = dotted(node.func.value)
            if key is not None and key != "self" and given:
                self.flow.taint[key] = self.flow.taint.get(key, NOTHING) | given

    def origins(self, node: ast.expr | None, element: int | None = None) -> Origins:
        """What the tensors in the value of an expression (or in its element) were made from."""
        if node is None or isinstance(node, ast.Constant | ast.Compare | ast.Lambda | ast.JoinedStr):
            return NOTHING
        if isinstance(node, ast.Name):
            return self._element(self.flow.taint.get(node.id, NOTHING), element)
        if isinstance(node, ast.Attribute):
            if node.attr in _NOT_DATA:
                return NOTHING
            key = dotted(node)
            if key is not None and key in self.flow.taint:
                return self._element(self.flow.taint[key], element)
            return self.origins(node.value)
        if isinstance(node, ast.Call):
            return self._call_origins(node, element)
        if isinstance(node, ast.Tuple | ast.List):
            if element is not None and element < len(node.elts):
                return self.origins(node.elts[element])
            return _union(self.origins(item) for item in node.elts)
        if isinstance(node, ast.Subscript):
            index = node.slice
            if isinstance(index, ast.Constant) and isinstance(index.value, int) and isinstance(node.value, ast.Call):
                return self.origins(node.value, index.value)
            return self.origins(node.value)
        if isinstance(node, ast.IfExp):
            return self.origins(node.body, element) | self.origins(node.orelse, element)
        if isinstance(node, ast.Starred | ast.Await | ast.NamedExpr):
            return self.origins(node.value, element)
        return _union(self.origins(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))

    @staticmethod
    def _element(origins: Origins, element: int | None) -> Origins:
        """Element ``element`` of a value that was bound whole: `out = f(x); a, b = out`."""
        if element is None:
            return origins
        return frozenset(
            CallResult(o.callee, element, o.inputs, o.named_experts)
            if isinstance(o, CallResult) and o.element is None
            else o
            for o in origins
        )

    def _call_origins(self, node: ast.Call, element: int | None) -> Origins:
        inputs = _union(self.origins(a) for a in (*node.args, *(k.value for k in node.keywords)))
        callee = self._callee(node)
        own = callee is not None and callee.startswith("super()")
        receiver = self.origins(node.func.value) if isinstance(node.func, ast.Attribute) and not own else NOTHING
        if callee is None:
            return inputs | receiver
        last = callee.rsplit(".", 1)[-1]
        if last in _NO_VALUES or self.profile.is_barrier(last):
            return NOTHING
        through_attribute = "." in callee
        experts = self.profile.is_expert_function(last) or (
            through_attribute and not callee.startswith("torch.") and self._names_experts(callee)
        )
        if receiver and not experts:  # a method of a tensor: `x.view(…)`, `x.mul_(y)`
            return inputs | receiver
        if last in self.profile.collectives or last in self.profile.wrappers:
            return inputs
        if callee.startswith(("torch.", "F.")) and not experts:
            return inputs
        return frozenset({CallResult(callee, element, _bounded(inputs), experts)})

    def _names_experts(self, callee: str) -> bool:
        """`self.experts(…)`, `layer.mlp.experts.forward(…)`: the call runs the experts."""
        *owners, last = callee.split(".")
        if self.profile.is_expert_attribute(last):
            return True
        runs = last.startswith(("forward", "run", "apply", "__call__"))
        return runs and any(self.profile.is_expert_attribute(owner) for owner in owners)

    def _elements(self, value: ast.expr) -> tuple[Origins, ...]:
        if isinstance(value, ast.Tuple):
            return tuple(self.origins(item) for item in value.elts)
        return (self.origins(value),)

    # --- hand-listed a2a backends

    def _note_backends(self, statement: ast.If, condition: Formula, leaves: bool) -> None:
        members = _backend_members(condition, self.profile) or _backend_members(negate(condition), self.profile)
        if members:
            chosen = frozenset(
                text[5:]
                for n in ast.walk(statement)
                if isinstance(n, ast.Call) and (text := dotted(n.func) or "").startswith("self.")
            )
            span = span_of(statement.test, self.file.lines)
            self.backend_tests.append(BackendTest(members, span, self.qualname, self.class_name, chosen, leaves))


def _names(node: ast.expr, name: str) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id == name for inner in ast.walk(node))


def _all_of(conditions: Iterable[_Condition | GuardPart]) -> Formula:
    return conj(condition.formula for condition in conditions)


def _backend_members(condition: Formula, profile: Profile) -> frozenset[str]:
    """The members of a pure disjunction of backend questions, else nothing."""
    parts = condition.operands if isinstance(condition, Or) else (condition,)
    prefix = f"{profile.backend_getter}.is_"
    if not parts or not profile.backend_getter:
        return frozenset()
    members = [
        p.name[len(prefix) : -2]
        for p in parts
        if isinstance(p, Atom) and p.name.startswith(prefix) and p.name.endswith("()")
    ]
    return frozenset(members) if len(members) == len(parts) else frozenset()


#: How deep the history of a tensor is kept; beyond it only its sources are.
_DEPTH = 24


def _bounded(origins: Origins) -> Origins:
    def depth(origin: Origin) -> int:
        steps, level = 0, [origin]
        while level:
            level = [i for o in level if isinstance(o, CallResult) for i in o.inputs]
            steps += 1
            if steps > _DEPTH:
                break
        return steps

    if all(depth(o) <= _DEPTH for o in origins):
        return origins
    flat: set[Origin] = set()
    stack = list(origins)
    while stack:
        origin = stack.pop()
        if isinstance(origin, CallResult):
            stack.extend(origin.inputs)
            if origin.named_experts:
                flat.add(Experts(origin.callee))
        else:
            flat.add(origin)
    return frozenset(flat)


def _union(parts: Iterator[Origins]) -> Origins:
    return frozenset().union(*parts)


def _lines_with(pattern: re.Pattern[str], source: str) -> list[int]:
    """The lines on which the matches of a pattern end."""
    lines: list[int] = []
    line, position = 1, 0
    for match in pattern.finditer(source):
        line += source.count("\n", position, match.end())
        position = match.end()
        lines.append(line)
    return lines


def _holds_line(lines: list[int], first: int, last: int | None) -> bool:
    """Whether one of the sorted lines is in a range."""
    position = bisect_left(lines, first)
    return position < len(lines) and lines[position] <= (last or first)


def _imports(tree: ast.Module, lines: list[int]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, module-level first; ``lines`` are all that hold one: blocks without are passed over."""
    stack: list[ast.stmt] = list(reversed(tree.body))
    later: list[ast.stmt] = []
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not _holds_line(lines, node.lineno, node.end_lineno):
            continue
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            later.append(node)
        else:
            stack.extend(s for block in _inner_blocks(node) for s in block)
    while later:
        node = later.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif _holds_line(lines, node.lineno, node.end_lineno):
            later.extend(s for block in _inner_blocks(node) for s in block)


def _inner_blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _defaults(arguments: ast.arguments) -> tuple[tuple[str, bool | None], ...]:
    """Parameters that have a default -> the default when it is a truth value, else None."""
    found: list[tuple[str, bool | None]] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs: list[tuple[ast.arg, ast.expr | None]] = list(
        zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)
    )
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in pairs:
        if default is not None:
            constant = isinstance(default, ast.Constant) and isinstance(default.value, bool)
            found.append((argument.arg, default.value if constant else None))  # type: ignore[attr-defined]
    return tuple(found)


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {(dotted(d) or "").rsplit(".", 1)[-1] for d in node.decorator_list}
    return bool(names & {"property", "cached_property"})


def _self_assignments(method: ast.FunctionDef) -> Iterator[tuple[str, ast.expr | None]]:
    """(attribute, value) for each store to ``self.x``; no value unless it is assigned unconditionally and plainly."""
    stack: list[tuple[ast.stmt, bool]] = [(statement, True) for statement in method.body]
    while stack:
        statement, plain = stack.pop()
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign):
            targets, value = [statement.target], statement.value
        elif isinstance(statement, ast.AugAssign):
            targets = [statement.target]
        else:
            stack += [(inner, False) for block in _inner_blocks(statement) for inner in block]
        for target in targets:
            for element in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
                base = element.value if isinstance(element, ast.Attribute) else None
                if isinstance(element, ast.Attribute) and isinstance(base, ast.Name) and base.id == "self":
                    yield element.attr, value if plain and element is target else None


def _shape(statement: ast.stmt, call: ast.Call) -> tuple[str, str | None]:
    if isinstance(statement, ast.Assign) and statement.value is call and len(statement.targets) == 1:
        target = statement.targets[0]
        return ("assign", dotted(target)) if isinstance(target, ast.Name | ast.Attribute) else ("other", None)
    if isinstance(statement, ast.Return) and statement.value is call:
        return "return", None
    return "other", None
