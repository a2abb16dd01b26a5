"""One function as a caller: whom it builds and calls, with what, and which layer-context flags it knows where.

Reads what `FunctionReader` leaves out: the condition of every call, the flags that an argument carries, and what a
`with` publishes. Only functions of layers and of the blocks that they call are read this way.

The two walk the same statements and are not one: at each point they know different things. `FunctionReader` follows
tensors, so it reads a loop twice; of each condition it keeps where and how it is written, since fixes rewrite it. Here
flags, contexts and classes are followed, a condition is no more than its formula, and the truth of an argument waits
until somebody asks. What they have in common is which statement is which: some thirty lines, at the price of a call
for each statement.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from moe_lint.expressions import LEAVES, Resolver, dotted, inline, is_condition, nodes, rewritten
from moe_lint.facts.reader import FileContext
from moe_lint.facts.syntax import assignment, defaults_of, span_of
from moe_lint.formula import TRUE, Atom, Formula, atom_set, conj, negate, nests_too_deeply
from moe_lint.model import Span
from moe_lint.profile import Profile
from moe_lint.spelling import unparse


class Reading:
    """One function of a file as it was read: it works out the truth values of the arguments in it.

    Two readings of one function are the same. It is no part of what is kept.
    """

    __slots__ = ("_tell", "function", "path")

    def __init__(self, path: str, function: str, tell: Callable[[str, int], Formula]) -> None:
        """``tell``: function, number of an argument in it -> its truth value."""
        self.path = path
        self.function = function
        self._tell = tell

    def tell(self, number: int) -> Formula:
        """The truth value of the ``number``-th argument."""
        return self._tell(self.function, number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reading) and (self.path, self.function) == (other.path, other.function)

    def __hash__(self) -> int:
        return hash((self.path, self.function))


class Truth(Struct, eq=False, array_like=True):
    """The truth value of an expression, worked out when it is asked for: of most arguments nobody asks it.

    It is known by its place: the ``number``-th that is read in a function of a file.
    """

    number: int
    #: what it is, if somebody has asked
    told: Formula | None = None
    #: set again when it is decoded; most are decoded in vain, so that has to be cheap
    reading: Reading | None = None

    @property
    def formula(self) -> Formula:
        if self.told is None:
            assert self.reading is not None
            self.told = self.reading.tell(self.number)
        return self.told

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Truth) and self.number == other.number and self.reading == other.reading

    def __hash__(self) -> int:
        return hash((self.reading, self.number))


class Passed(Struct, frozen=True, array_like=True):
    """One argument of a call. ``keyword`` is None for a positional one, ``*`` or ``**`` for an unpacked one."""

    keyword: str | None
    text: str
    span: Span
    literal: bool | None
    #: its truth value, where it is a condition
    truth: Truth | None
    #: of an unpacked one that is written out, `**(dict(size=1) if alone else {})`: (keyword, text, when it is given)
    given: tuple[tuple[str, str, Formula], ...] | None = None

    @property
    def formula(self) -> Formula | None:
        """Its truth value, where it is a condition."""
        return self.truth.formula if self.truth is not None else None

    def carries(self, flag: str) -> bool:
        """Whether its value depends on a layer-context flag."""
        formula = self.formula
        return formula is not None and flag in atom_set(formula)

    @property
    def hides(self) -> bool:
        """Whether it stands for arguments that cannot be seen."""
        return self.keyword in ("*", "**")


class Call(Struct, frozen=True, cache_hash=True, array_like=True):
    """One call, with the condition under which it runs and the flags known there (flag -> its spelling).

    ``callee`` ends in `()` where the result of a call is called.

    A call of a local that may hold one of several functions or classes counts once for each.
    """

    callee: str
    span: Span
    arguments: tuple[Passed, ...]
    condition: Formula
    published: tuple[Passed, ...]
    known: tuple[tuple[str, str], ...]
    #: the attribute that the call's result is stored in (`self.mlp = Block(…)`); ``return`` where it is returned
    stored: str | None = None
    #: the innermost loop around it
    loop: Span | None = None


class Mark(Struct, frozen=True, array_like=True):
    """An assignment to a marker of a tensor ("this still owes a sum")."""

    span: Span
    value: bool | None
    condition: Formula
    tensor: str | None


class Addition(Struct, frozen=True, array_like=True):
    """A term added to a tensor: `x += y`, `x.add_(y)`, `z = x + y`, `return x + y`.

    In a sum each term is added to each other one.
    """

    target: str
    term: str
    span: Span
    condition: Formula


class Conduct(Struct, frozen=True, array_like=True):
    """What one function does as a caller. ``calls`` holds every call once, in order, the questions for flags too."""

    params: tuple[str, ...]
    keyword_only: frozenset[str]
    #: name of `*args` and of `**kwargs`, if any
    variadic: tuple[str | None, str | None]
    calls: tuple[Call, ...]
    marks: tuple[Mark, ...]
    additions: tuple[Addition, ...]
    #: the layer-context flags among the parameters that the body reads
    reads: frozenset[str]
    #: parameters that are truth values by their annotation or default
    truths: frozenset[str]
    #: attribute -> the parameter or constant that `self.attribute` is set to
    kept: Mapping[str, str]
    #: flag -> when it is set, where the function works that out by itself, once, and asks nobody
    decided: Mapping[str, Formula]

    @classmethod
    def unread(cls) -> Conduct:
        """That of a function which could not be read (the reason is reported)."""
        return cls((), frozenset(), (None, None), (), (), (), frozenset(), frozenset(), {}, {})


class _State(Struct):
    """What is known at one point: values of names, published flags, contexts held in names."""

    env: dict[str, ast.expr] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    #: local -> what it may stand for, each with the condition under which it does
    classes: dict[str, tuple[tuple[str, Formula], ...]] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(dict(self.env), dict(self.known), dict(self.classes))


class Terms:
    """Truth values of expressions whose locals are put in, wherever in a function they stand.

    What a `Truth` needs later, without all that the reader of the function has at hand.
    """

    def __init__(self, file: FileContext, class_env: Callable[[str], ast.expr | None]) -> None:
        self._file = file
        self._class_env = class_env
        #: predicate -> the flag that it asks for
        self.questions = {flag.predicate: flag.name for flag in file.profile.flags if flag.predicate}
        #: each argument that is a condition, as it is written and with its locals put in
        self.arguments: list[tuple[ast.expr, ast.expr]] = []

    def told(self, node: ast.expr) -> Formula:
        file = self._file
        resolver = Resolver(self._class_env, file.aliases, file.modules, file.profile)
        return file.builder.build(resolver.resolve(self.answered(node)))

    def of_argument(self, number: int) -> Formula:
        """That of an argument; one that nests too deeply is a condition that is not taken apart."""
        written, node = self.arguments[number]
        formula = self.told(node)
        return Atom(unparse(written)) if nests_too_deeply(formula) else formula

    def answered(self, node: ast.expr) -> ast.expr:
        """The expression with each question for a flag replaced by the flag."""
        if isinstance(node, LEAVES):
            return node
        return rewritten(node, self._answer)

    def _answer(self, part: ast.expr) -> ast.expr | None:
        if not isinstance(part, ast.Call):
            return None
        flag = self.questions.get(_last_word(part.func))
        return part if flag is None else ast.Name(flag, ast.Load())


class ConductReader:
    """Walks one function in execution order. Nested functions and classes are left to themselves."""

    def __init__(self, file: FileContext, class_env: Callable[[str], ast.expr | None], reading: Reading) -> None:
        self.file = file
        self.profile: Profile = file.profile
        self.terms = Terms(file, class_env)
        self.reading = reading
        self.state = _State()
        self.guard: list[Formula] = []
        self._reached: dict[tuple[Formula, ...], Formula] = {}
        self.published: list[Passed] = []
        self.loops: list[Span] = []
        self.contexts: dict[str, tuple[Passed, ...]] = {}
        self.calls: list[Call] = []
        self.found: dict[Span, list[Call]] = {}
        self.marks: list[Mark] = []
        self.additions: list[Addition] = []
        self.kept: dict[str, str] = {}
        self.decided: dict[str, Formula | None] = {}
        self.built: dict[str, list[Call]] = {}
        #: parameters that still are what was passed
        self.untouched: set[str] = set()

    def read(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Conduct:
        arguments = node.args
        params = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        self.untouched = {p.arg for p in params}
        for param in params:
            flag = self.profile.flag_names.get(param.arg)
            if flag is not None:
                self.state.known[flag] = param.arg
        self.block(node.body)
        return Conduct(
            tuple(p.arg for p in params),
            frozenset(p.arg for p in arguments.kwonlyargs),
            (
                arguments.vararg.arg if arguments.vararg else None,
                arguments.kwarg.arg if arguments.kwarg else None,
            ),
            tuple(sorted(self.calls, key=lambda call: call.span)),
            tuple(self.marks),
            tuple(self.additions),
            self._reads(node, {p.arg for p in params}),
            frozenset(p.arg for p in params if p.annotation is not None and "bool" in unparse(p.annotation))
            | {name for name, default in defaults_of(arguments) if default is not None},
            self.kept,
            {flag: holds for flag, holds in self.decided.items() if holds is not None},
        )

    def _reads(self, node: ast.AST, params: set[str]) -> frozenset[str]:
        """The flags among the parameters that the body reads."""
        flags = params & self.profile.flag_names.keys()
        names = (n for n in nodes(node) if isinstance(n, ast.Name)) if flags else ()
        return frozenset(n.id for n in names if n.id in flags and isinstance(n.ctx, ast.Load))

    # --- statements

    def block(self, body: Iterable[ast.stmt]) -> bool:
        """Run a block; True when it always leaves. Conditions of early exits stay on the guard."""
        for statement in body:  # noqa: SIM110 - Python does not let calls through C nest as deeply as its own
            if self.statement(statement):
                return True
        return False

    def _scoped(self, body: Iterable[ast.stmt], condition: Formula | None = None) -> bool:
        depth = len(self.guard)
        if condition is not None:
            self.guard.append(condition)
        left = self.block(body)
        del self.guard[depth:]
        return left

    def statement(self, node: ast.stmt) -> bool:
        """Read one statement. True if it always leaves its block."""
        if isinstance(node, ast.If):
            return self._if(node)
        if isinstance(node, ast.Return):
            if node.value is not None:
                self._value(node.value, ("return",))
                self._sum(node.value)
            return True
        if isinstance(node, ast.Raise | ast.Continue | ast.Break):
            if isinstance(node, ast.Raise) and node.exc is not None:
                self.expression(node.exc)
            return True
        assigned = assignment(node)
        if assigned is not None:
            self._assign(*assigned)
        elif isinstance(node, ast.AugAssign):
            self.expression(node.value)
            if isinstance(node.op, ast.Add):
                self._addition(node.target, node.value, node)
            self._forget(node.target)
        elif isinstance(node, ast.Expr):
            self.expression(node.value)
            call = node.value
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_":
                if call.args:
                    self._addition(call.func.value, call.args[0], node)
        elif isinstance(node, ast.With | ast.AsyncWith):
            return self._with(node)
        elif isinstance(node, ast.For | ast.AsyncFor):
            self.expression(node.iter)
            self._forget(node.target)
            self._loop(node)
        elif isinstance(node, ast.While):
            self.expression(node.test)
            self._loop(node)
        elif isinstance(node, ast.Try):
            left = self.block(node.body)
            for handler in node.handlers:
                self._branch(handler.body, ())
            self._branch(node.orelse, ())
            return self.block(node.finalbody) or (left and not node.handlers)
        elif isinstance(node, ast.Match):
            self.expression(node.subject)
            for case in node.cases:
                self._branch(case.body, ())
        elif isinstance(node, ast.Assert):
            self.expression(node.test)
        return False

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While) -> None:
        self.loops.append(span_of(node, self.file.lines))
        self._branch(node.body)
        self.loops.pop()
        self._branch(node.orelse)

    def _branch(self, *bodies: Iterable[ast.stmt]) -> None:
        """Blocks that may run or not."""
        for body in bodies:
            before = self.state.copy()
            if self._scoped(body):
                self.state = before
            else:
                self.state = self._merged(None, self.state, before)

    def _if(self, node: ast.If) -> bool:
        self.expression(node.test)
        test = inline(node.test, self.state.env)
        holds = self.formula(node.test)
        before = self.state.copy()
        left_then = self._scoped(node.body, holds)
        then, self.state = self.state, before
        left_else = self._scoped(node.orelse, negate(holds))
        if left_then and left_else:
            return True
        if left_then:
            self.guard.append(negate(holds))
        elif left_else:
            self.state = then
            self.guard.append(holds)
        else:
            self.state = self._merged(test, then, self.state)
        return False

    def _merged(self, test: ast.expr | None, one: _State, other: _State) -> _State:
        merged = _State(known={**other.known, **one.known})
        for name in {*one.env, *other.env}:
            first, second = one.env.get(name), other.env.get(name)
            if first is second and first is not None:
                merged.env[name] = first
            elif test is not None:
                unknown = ast.Name(name, ast.Load())
                both = ast.IfExp(test, first or unknown, second or unknown)
                if is_condition(both):
                    merged.env[name] = both
        for flag, name in merged.known.items():
            merged.env.setdefault(name, ast.Name(flag, ast.Load()))
        for name in {**one.classes, **other.classes}:
            merged.classes[name] = tuple(dict.fromkeys((*one.classes.get(name, ()), *other.classes.get(name, ()))))
        return merged

    def _with(self, node: ast.With | ast.AsyncWith) -> bool:
        depth = len(self.published)
        for item in node.items:
            context = item.context_expr
            self.expression(context)
            if isinstance(context, ast.Name):
                self.published += self.contexts.get(context.id, ())
            else:
                self.published += self._publishes(context)
            if item.optional_vars is not None:
                self._forget(item.optional_vars)
        left = self.block(node.body)
        del self.published[depth:]
        return left

    def _publishes(self, node: ast.expr) -> tuple[Passed, ...]:
        """The flags that a context manager, or an object that is handed down, publishes."""
        if isinstance(node, ast.IfExp):
            return (*self._publishes(node.body), *self._publishes(node.orelse))
        if not isinstance(node, ast.Call) or _last_word(node.func) not in self.profile.publishers:
            return ()
        given = (self._passed(k.arg, k.value) for k in node.keywords if k.arg in self.profile.flag_names)
        return tuple(replace(p, keyword=self.profile.flag_names[p.keyword or ""]) for p in given)

    def _handed(self, call: ast.Call) -> Iterator[Passed]:
        """The flags in the objects among the arguments of a call: `plan`, or `StepPlan(flag=…)` itself."""
        for node in (*call.args, *(keyword.value for keyword in call.keywords)):
            if isinstance(node, ast.Name):
                yield from self.contexts.get(node.id, ())
            elif isinstance(node, ast.Call):
                yield from self._publishes(node)

    # --- assignments

    def _assign(self, targets: list[ast.expr], value: ast.expr) -> None:
        names = [key for target in targets if (key := dotted(target)) is not None]
        stored = tuple(key[5:] for key in names if key.startswith("self.") and "." not in key[5:])
        self._value(value, stored)
        self._sum(value)
        for target in targets:
            self._bind(target, value)

    def _sum(self, value: ast.expr) -> None:
        """Record what is added to what in a sum: each term joins each other one that has a name."""
        if isinstance(value, ast.IfExp):
            for branch, holds in ((value.body, self.formula(value.test)), (value.orelse, None)):
                if isinstance(branch, ast.BinOp):
                    self.guard.append(negate(self.formula(value.test)) if holds is None else holds)
                    self._sum(branch)
                    self.guard.pop()
        elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            terms = _terms(value)
            for target in terms:
                for term in terms:
                    if term is not target:
                        self._addition(target, term, value)

    def _addition(self, target: ast.expr, term: ast.expr, node: ast.expr | ast.stmt) -> None:
        name = dotted(target)
        if name is not None:
            span = span_of(node, self.file.lines)
            self.additions.append(Addition(name, unparse(term), span, self.reached()))

    def _value(self, value: ast.expr, stored: tuple[str, ...]) -> None:
        """Record the calls in a value; those that make it are stored in an attribute."""
        before = len(self.calls)
        self.expression(value)
        if stored:
            makers = [span_of(maker, self.file.lines) for maker in _makers(value)]
            for position in range(before, len(self.calls)):
                if self.calls[position].span in makers:
                    self.calls[position] = replace(self.calls[position], stored=stored[0])
            if isinstance(value, ast.Name):
                self.calls += [replace(call, stored=stored[0]) for call in self.built.get(value.id, ())]

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
            for position, element in enumerate(target.elts):
                if same and isinstance(value, ast.Tuple | ast.List):
                    self._bind(element, value.elts[position])
                else:
                    self._forget(element)
            return
        if isinstance(target, ast.Attribute):
            self._attribute(target, value)
            return
        if not isinstance(target, ast.Name):
            return
        name = target.id
        resolved = self.terms.answered(inline(value, self.state.env))
        passed = name in self.untouched
        self._forget(target)
        condition = is_condition(resolved)
        asks = condition and not _is_opaque(resolved)
        flags = atom_set(self.formula(resolved)) & set(self.terms.questions.values()) if asks else ()
        spelled = self.profile.flag_names.get(name)
        told = bool(flags) or isinstance(resolved, ast.Constant)  # else a flag's name stands for the flag
        itself = isinstance(resolved, ast.Name) and resolved.id == name
        if condition and not itself and (spelled is None or told):
            refers = any(isinstance(n, ast.Name) and n.id == name for n in nodes(resolved))
            if spelled is not None or not refers or passed:
                self.state.env[name] = resolved  # `alone = alone or split`: what was passed for `alone` is a value, too
        if spelled is not None:
            self.state.known[spelled] = name
            once = spelled not in self.decided
            self.decided[spelled] = self._own(value) if once and is_condition(value) and not itself else None
        elif len(flags) == 1:
            self.state.known.setdefault(next(iter(flags)), name)
        if isinstance(value, ast.Call) and _last_word(value.func) in self.profile.publishers:
            self.contexts[name] = self._publishes(value)
            for keyword in value.keywords:
                self._known_in(name, keyword.arg or "", keyword.value)
        makers = (span_of(maker, self.file.lines) for maker in _makers(value))
        made = [call for span in makers for call in self.found.get(span, ())]
        if made:
            self.built.setdefault(name, []).extend(made)
        behind = tuple(self._behind(value))
        if behind:
            self.state.classes[name] = behind

    def _known_in(self, name: str, attribute: str, value: ast.expr) -> None:
        """An object holds a flag from here on (`plan.flag`), unless it is a constant there."""
        flag = self.profile.flag_names.get(attribute)
        if flag is not None and not isinstance(value, ast.Constant):
            self.state.known.setdefault(flag, f"{name}.{attribute}")

    def _behind(self, value: ast.expr, holds: Formula = TRUE) -> Iterator[tuple[str, Formula]]:
        """The functions or classes that a value may be: `A`, `B if c else A`."""
        if isinstance(value, ast.IfExp):
            chosen = self.formula(value.test)
            yield from self._behind(value.body, conj((holds, chosen)))
            yield from self._behind(value.orelse, conj((holds, negate(chosen))))
        elif isinstance(value, ast.Name | ast.Attribute):
            text = dotted(value)
            if text is not None:
                yield text, holds

    def _own(self, value: ast.expr) -> Formula | None:
        """When a flag's value is true, if the function works it out by itself: no constant, and no flag in it."""
        holds = self.formula(value)
        names = atom_set(holds)
        return holds if names and not names & set(self.profile.flag_names.values()) else None

    def _attribute(self, target: ast.Attribute, value: ast.expr) -> None:
        if target.attr in self.profile.markers:
            literal = value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None
            self.marks.append(Mark(span_of(target, self.file.lines), literal, self.reached(), dotted(target.value)))
        elif isinstance(target.value, ast.Name) and target.value.id == "self":
            simple = isinstance(value, ast.Name) or (isinstance(value, ast.Constant) and isinstance(value.value, bool))
            self.kept[target.attr] = unparse(value) if simple and target.attr not in self.kept else ""
        elif isinstance(target.value, ast.Name) and target.value.id in self.contexts:
            name, flag = target.value.id, self.profile.flag_names.get(target.attr)
            if flag is not None:
                others = (passed for passed in self.contexts[name] if passed.keyword != flag)
                self.contexts[name] = (*others, self._passed(flag, value))
                self._known_in(name, target.attr, value)

    def _forget(self, target: ast.expr) -> None:
        for node in (target,) if isinstance(target, LEAVES) else nodes(target):
            if isinstance(node, ast.Name):
                self.untouched.discard(node.id)
                self.state.env.pop(node.id, None)
                self.state.classes.pop(node.id, None)
                self.contexts.pop(node.id, None)
                for flag in [flag for flag, name in self.state.known.items() if name.partition(".")[0] == node.id]:
                    del self.state.known[flag]

    # --- expressions

    def reached(self) -> Formula:
        """What must hold for this point to be reached."""
        key = tuple(self.guard)
        if key not in self._reached:
            self._reached[key] = conj(key)
        return self._reached[key]

    def formula(self, node: ast.expr) -> Formula:
        """The truth value of an expression here."""
        formula = self.terms.told(inline(node, self.state.env))
        if nests_too_deeply(formula):
            raise RecursionError  # here the function is known
        return formula

    def _truth(self, node: ast.expr) -> Truth:
        """The truth value of an argument."""
        truth = Truth(len(self.terms.arguments), None, self.reading)
        self.terms.arguments.append((node, inline(node, self.state.env)))
        return truth

    def expression(self, node: ast.expr) -> None:
        """Record the calls in an expression, with the conditions inside it."""
        if isinstance(node, LEAVES):
            return
        if isinstance(node, ast.Attribute):
            self.expression(node.value)
            return
        if isinstance(node, ast.IfExp):
            self.expression(node.test)
            holds = self.formula(node.test)
            for branch, condition in ((node.body, holds), (node.orelse, negate(holds))):
                self.guard.append(condition)
                self.expression(branch)
                self.guard.pop()
            return
        if isinstance(node, ast.BoolOp):
            depth = len(self.guard)
            last = next((i for i in range(len(node.values) - 1, -1, -1) if _calls(node.values[i])), 0)
            for value in node.values[: last + 1]:  # behind it there is no call whose condition could be of interest
                self.expression(value)
                if value is not node.values[last]:
                    holds = self.formula(value)
                    self.guard.append(holds if isinstance(node.op, ast.And) else negate(holds))
            del self.guard[depth:]
            return
        if isinstance(node, ast.NamedExpr):
            self.expression(node.value)
            self._bind(node.target, node.value)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expression(child)
            elif isinstance(child, ast.keyword):
                self.expression(child.value)
            elif isinstance(child, ast.comprehension):
                self.expression(child.iter)
        if isinstance(node, ast.Call):
            self._call(node)

    def _call(self, node: ast.Call) -> None:
        callee = dotted(node.func)
        if callee is None and isinstance(node.func, ast.Call) and dotted(node.func.func) is not None:
            callee = f"{dotted(node.func.func)}()"  # `chosen(config)(…)`: what that returns is called
        elif callee is None:
            callee = f"?.{node.func.attr}" if isinstance(node.func, ast.Attribute) else "?"
        if callee == "setattr" and len(node.args) == 3 and isinstance(node.args[1], ast.Constant):
            if node.args[1].value in self.profile.markers:
                value = node.args[2].value if isinstance(node.args[2], ast.Constant) else None
                literal = value if isinstance(value, bool) else None
                tensor = dotted(node.args[0])
                self.marks.append(Mark(span_of(node, self.file.lines), literal, self.reached(), tensor))
            return
        head, _, rest = callee.partition(".")
        behind = self.state.classes.get(head, ()) if head != "self" else ()
        given = [self._passed("*" if isinstance(a, ast.Starred) else None, a) for a in node.args]
        given += [
            self._passed(k.arg, k.value)
            if k.arg is not None
            else replace(self._passed("**", k.value), given=self._written_out(k.value))
            for k in node.keywords
        ]
        call = Call(
            callee,
            span_of(node, self.file.lines),
            tuple(given),
            self.reached(),
            (*self.published, *self._handed(node)),
            tuple(sorted(self.state.known.items())),
            loop=self.loops[-1] if self.loops else None,
        )
        made = [
            replace(call, callee=f"{text}.{rest}" if rest else text, condition=conj((call.condition, holds)))
            for text, holds in behind
        ] or [call]
        self.calls += made
        self.found.setdefault(call.span, []).extend(made)

    def _written_out(self, node: ast.expr, holds: Formula = TRUE) -> tuple[tuple[str, str, Formula], ...] | None:
        """The keywords of an unpacked argument and when each is given; None where they cannot be seen."""
        if isinstance(node, ast.IfExp):
            chosen = self.formula(node.test)
            one = self._written_out(node.body, conj((holds, chosen)))
            other = self._written_out(node.orelse, conj((holds, negate(chosen))))
            return None if one is None or other is None else (*one, *other)
        if isinstance(node, ast.Call) and dotted(node.func) == "dict" and not node.args:
            pairs = [(k.arg, k.value) for k in node.keywords]
        elif isinstance(node, ast.Dict):
            pairs = [
                (key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None, value)
                for key, value in zip(node.keys, node.values, strict=True)
            ]
        else:
            return None
        found = tuple((name, unparse(value), holds) for name, value in pairs if name is not None)
        return found if len(found) == len(pairs) else None

    def _passed(self, keyword: str | None, node: ast.expr) -> Passed:
        value = node.value if isinstance(node, ast.Starred) else node
        span = span_of(value, self.file.lines)
        literal = value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None
        truth = self._truth(value) if is_condition(value) else None
        return Passed(keyword, unparse(value), span, literal, truth)


def _last_word(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_opaque(node: ast.expr) -> bool:
    """Whether an expression is a call that is one atom whatever its arguments: it is no question for a flag."""
    named = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    return (
        isinstance(node, ast.Call)
        and bool(node.args or node.keywords)
        and named not in ("bool", "all", "any", "getattr")
    )


def _calls(node: ast.expr) -> bool:
    """Whether there is a call in an expression (or a name bound that others could call)."""
    return any(isinstance(n, ast.Call | ast.NamedExpr) for n in nodes(node))


def _terms(value: ast.expr) -> list[ast.expr]:
    """The terms of `a + b + c`."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return [*_terms(value.left), *_terms(value.right)]
    return [value]


def _makers(value: ast.expr) -> list[ast.Call]:
    """The calls whose result may be the value itself: `A(…) if c else B(…)`, `wrap(A(…))`, `get_class(q)(…)`."""
    if isinstance(value, ast.IfExp):
        return [*_makers(value.body), *_makers(value.orelse)]
    if isinstance(value, ast.BoolOp):
        return [maker for part in value.values for maker in _makers(part)]
    return [value] if isinstance(value, ast.Call) else []
