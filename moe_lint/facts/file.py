"""A file's text -> `FileFacts`: what its classes and functions do, each read when somebody asks."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, lru_cache

from moe_lint.expressions import FormulaBuilder, NotBoolean, Resolver, boolean_body, inline, nodes
from moe_lint.facts.alone import only_guards
from moe_lint.facts.class_env import ClassEnv
from moe_lint.facts.conduct import Conduct, ConductReader, Reading, Terms
from moe_lint.facts.data import AttributeFact, FunctionFacts, Origins, Paths
from moe_lint.facts.definitions import Definitions, signature_of
from moe_lint.facts.groups import ChoiceReader, GroupChoice
from moe_lint.facts.handed import hands_on
from moe_lint.facts.leaving import Leaving, first_returned, leaving, result_name
from moe_lint.facts.paths import PathReader
from moe_lint.facts.reader import FileContext, FunctionReader
from moe_lint.facts.state import Definition, Unclear, decoded, encoded
from moe_lint.formula import TRUE, Formula, nests_too_deeply
from moe_lint.model import SkipReason, Span
from moe_lint.profile import Profile
from moe_lint.source import Lines, SourceError

#: `self.x = …`, `self.x: X = …`, `for self.x in …`
_ASSIGNED_ATTRIBUTE = re.compile(r"self(?<!\wself)\.(\w+)(?=[^\S\n]*(?:=(?!=)|:.|(?<=\s)in\b))")
#: What may be taken out of a line without losing a target: arguments of a call, and other parentheses without `self`.
_ARGUMENTS = re.compile(r"(?<=[\w)\]])\([^()]*\)|\((?:(?!self\.)[^()])*\)")
_OPEN_CALL = re.compile(r"[\w)\]]\(")
_ASSIGNS = re.compile(r"(?<![=!<>])=(?!=)")
_GOES_ON = re.compile(r"\\\s*$|^\s*self\.\w+\s*:")
#: The end of a target over several lines, `(`, names, `) =`, and what stands before it.
_LONG_TARGET_END = re.compile(r"\n\s*\)\s*=(?!=)")
_LONG_TARGET = re.compile(r"[\w\s.,*\[\]]*")
_ATTRIBUTE = re.compile(r"self(?<!\wself)\.(\w+)")
#: A predicate in which more conditions have to be read, each once for each way to it, is none that one can look at.
_MAX_CONDITIONS = 500


@lru_cache(maxsize=20)
def _conduct(file: FileFacts, qualname: str) -> tuple[Conduct, Terms]:
    """What `FileFacts.read_conduct` reads.

    Only those that were read last are kept: terms hold syntax trees, and who asks for a truth value does so at once.
    """
    return file.read_conduct(qualname)


class FileFacts(Definitions):
    """What one file says: its definitions, and what each of them does."""

    def __init__(self, path: str, lines: Lines, profile: Profile, kept: memoryview | None = None) -> None:
        """``kept`` is what an earlier run found out about this text, as `kept` gave it.

        Raises ``SourceError`` for a text whose top level cannot be parsed, and ``msgspec.MsgspecError``.
        """
        super().__init__(path, lines, None if kept is None else decoded(kept, path, self._truth))
        self.profile = profile
        self.builder = FormulaBuilder(profile)
        self._class_envs: dict[str, ClassEnv] = {}
        self._told = False
        self._kept = kept
        self._answers = self._state.answers
        #: reductions whose guard another reader, too, reads as it is read here
        self.confirmed = self._state.confirmed

    @cached_property
    def _context(self) -> FileContext:
        """What whoever reads a function has to know of the file."""
        asks_backend = all(word in self._source for word in re.findall(r"\w+", self.profile.backend_getter))
        return FileContext(self.lines, self.profile, self.builder, self.aliases, self.modules, asks_backend)

    def kept(self) -> memoryview | None:
        """What has been found out, for a later run that finds the same text; None if something could not be read."""
        if self.errors:
            return None
        as_it_was = self._kept is not None and self._state.answers == self._answers and not self._told
        return self._kept if as_it_was else encoded(self._state)

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
        self._state.signatures.setdefault(qualname, signature_of(node))
        # reading one may open another method of the class, and the functions inside that are known from then on
        for name in [name for name, inner in self._state.definitions.items() if inner.parent == qualname]:
            self._read_function(name, reader.flow.taint)

    def conduct(self, qualname: str) -> Conduct:
        """What one function does as a caller. Raises ``KeyError`` for a name that the file does not define."""
        if qualname not in self._state.conducts:
            try:
                self._state.conducts[qualname], _ = _conduct(self, qualname)
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

    def read_conduct(self, qualname: str) -> tuple[Conduct, Terms]:
        """The conduct of a function, and what tells the truth values in it. Raises ``RecursionError``."""
        definition = self._functions[qualname]
        reading = Reading(self.path, qualname, self._truth)
        reader = ConductReader(self._context, self._env_of(definition.class_name), reading)
        return reader.read(self._node(definition)), reader.terms

    def _truth(self, qualname: str, number: int) -> Formula:
        """The truth value of an argument in a function."""
        self._told = True  # it is kept with the argument
        _, terms = _conduct(self, qualname)
        return terms.of_argument(number)

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

    def result_name(self, qualname: str, call: Span) -> str | None:
        """The one name that a function gives to what a call returns."""
        results, key = self._state.results, (qualname, call)
        if key not in results:
            results[key] = result_name(self._node(self._functions[qualname]), call, self.lines)
        return results[key]

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
