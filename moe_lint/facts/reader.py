"""One function body, in execution order: its guards, the values of its locals, its reductions and calls."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import cached_property, partial

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.expressions import JOINS, LEAVES, FormulaBuilder, Resolver, dotted, is_condition, nodes
from moe_lint.facts.data import (
    NOTHING,
    Argument,
    AttributeFact,
    BackendTest,
    CallFact,
    CallResult,
    FunctionFacts,
    GuardPart,
    Origins,
    Param,
    RawSite,
    ScatterFact,
)
from moe_lint.facts.operands import Flow, Operands
from moe_lint.facts.syntax import arguments_of, assignment, defaults_of, group_axis, is_reduction_name, span_of, sums
from moe_lint.formula import TRUE, And, Atom, Formula, Or, choose, conj, disj, negate
from moe_lint.model import Axis, Span
from moe_lint.profile import Profile
from moe_lint.source import Lines
from moe_lint.spelling import unparse


class FileContext(Struct, frozen=True):
    """What a function body needs to know of its file."""

    lines: Lines
    profile: Profile
    builder: FormulaBuilder
    #: local name -> the name that was imported
    aliases: Mapping[str, str]
    modules: frozenset[str]
    #: whether any condition in the file can ask for the a2a backend
    asks_backend: bool


class _Condition:
    """One condition around the point that is read, under the locals that it sees.

    Most conditions surround no reduction: the formula and the `GuardPart` are built when a site asks for them.
    """

    def __init__(
        self,
        reader: FunctionReader,
        test: ast.expr,
        polarity: bool,
        kind: str,
        formula: Callable[[], Formula] | None = None,
        statement: ast.stmt | None = None,
        plain: bool = True,
    ) -> None:
        self._reader = reader
        self._test = test
        self._polarity = polarity
        self._kind = kind
        self._formula = formula
        self._statement = statement
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
        local = written.id if isinstance(written, ast.Name) and written.id in self._carriers else None
        if local is not None and self._reader.names.get(local) == 1:
            written = self._carriers[local]
        elif _joined(written, positive) is None:
            written, positive = self._test, self._polarity
        carrier = None if written is self._test else span_of(written, lines)
        parts = _joined(written, positive) or [written]
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
            self._plain,
        )

    def elsewhere(self) -> _Condition:
        """The same for code that stands outside the statement."""
        other = copy(self)
        other.__dict__.pop("part", None)
        other._plain = False
        return other

    def _built(self, node: ast.expr, polarity: bool) -> Formula:
        formula = self._reader.formula(node, self._env)
        return formula if polarity else negate(formula)


class FunctionReader(Operands):
    """Walks one function in execution order, keeping the guard, the locals' values and the tensors' origins."""

    def __init__(
        self,
        file: FileContext,
        qualname: str,
        class_name: str | None,
        class_env: Callable[[str], ast.expr | None],
        taint: Mapping[str, Origins],
    ) -> None:
        super().__init__(file.profile, file.aliases, taint)
        self.file = file
        self.qualname = qualname
        self.class_name = class_name
        self.class_env = class_env
        self.guard: list[_Condition | GuardPart] = []
        #: in a first pass over a loop, which is run for its effect on the flow only
        self.quiet = False
        self.returns: list[tuple[Origins, ...]] = []
        self.sites: list[RawSite] = []
        self.calls: list[CallFact] = []
        self.attributes: list[AttributeFact] = []
        self.builds: dict[str, None] = {}
        self.backend_tests: list[BackendTest] = []
        self.scatters: list[ScatterFact] = []
        self.params: tuple[str, ...] = ()
        self.assigned: set[str] = set()
        self.statement: ast.stmt | None = None
        self.node: ast.AST | None = None
        self.consumers = 0
        #: local -> the lambda that it holds, and the guard under which it was made
        self.lambdas: dict[str, tuple[ast.Lambda, tuple[_Condition | GuardPart, ...]]] = {}
        #: a call whose conditions are wanted, and what must hold for it to be reached
        self.watch: Span | None = None
        self.watched: Formula | None = None

    def facts(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> FunctionFacts:
        return FunctionFacts(
            node.name,
            self.qualname,
            self.class_name,
            node.lineno,
            self.params,
            dict(defaults_of(node.args)),
            tuple(self.returns),
            tuple(self.sites),
            tuple(self.calls),
            tuple(self.attributes),
            tuple(self.builds),
            tuple(self.backend_tests),
            tuple(self.scatters),
        )

    # --- statements

    def run(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Read the function; `facts` has what was found then."""
        self.params = tuple(a.arg for a in arguments_of(node))
        self.node = node
        for name in self.params:
            self.flow.taint[name] = frozenset({Param(name)}) if name != "self" else NOTHING
        self.assigned.update(self.params)
        self.block(node.body)

    @cached_property
    def names(self) -> dict[str, int]:
        """How often each name is read: a local condition that is read once may be rewritten where it is assigned."""
        assert self.node is not None
        return Counter(n.id for n in nodes(self.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))

    def block(self, body: list[ast.stmt]) -> tuple[bool, list[_Condition | GuardPart]]:
        """Run a block. Returns whether it always leaves, and the conditions under which it falls through."""
        depth = len(self.guard)
        left = False
        for statement in body:
            if left:
                break
            left = self.run_statement(statement)
        through = self.guard[depth:]
        del self.guard[depth:]
        return left, through

    def run_statement(self, statement: ast.stmt) -> bool:
        """Read one statement. True if it always leaves its block."""
        self.statement = statement
        if isinstance(statement, ast.If):
            return self._if(statement)
        if isinstance(statement, ast.Return):
            if statement.value is not None:
                self.expression(statement.value)
                if not self.quiet:
                    self.returns.append(self.elements(statement.value))
            return True
        if isinstance(statement, ast.Raise | ast.Continue | ast.Break):
            return True
        assigned = assignment(statement)
        if assigned is not None:
            targets, value = assigned
            self.expression(value)
            for target in targets:
                self._assign(target, value)
        elif isinstance(statement, ast.AugAssign):
            self.expression(statement.value)
            key = dotted(statement.target)
            if key is not None:
                self.flow.taint[key] = self.origins(statement.target) | self.origins(statement.value)
                self._bind_again(key, statement)
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
        elif isinstance(statement, ast.FunctionDef) and not arguments_of(statement):
            # whoever is handed it can only run it, and what it returns comes back
            self.flow.taint[statement.name] = frozenset({CallResult(statement.name, None, NOTHING, False)})
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
        for statement in body:  # noqa: SIM110 - Python does not let calls through C nest as deeply as its own
            if self.run_statement(statement):
                return True
        return False

    def _if(self, statement: ast.If) -> bool:
        test = statement.test
        self.expression(test)
        before = self.flow.copy()
        condition = _Condition(self, test, True, "if", None, statement)
        self.guard.append(condition)
        left_then, through_then = self.block(statement.body)
        self.guard.pop()
        if self.file.asks_backend and not self.quiet:
            self._note_backends(statement, condition.formula, left_then)
        then, self.flow = self.flow, before
        left_else, through_else = False, list[_Condition | GuardPart]()
        if statement.orelse:
            otherwise = _Condition(self, test, False, "else", lambda: negate(condition.formula), statement)
            self.guard.append(otherwise)
            left_else, through_else = self.block(statement.orelse)
            self.guard.pop()
        if left_then and left_else:
            return True
        then_holds, else_holds = partial(_all_of, through_then), partial(_all_of, through_else)
        if left_then:

            def through() -> Formula:
                return conj((negate(condition.formula), else_holds()))

            self.guard.append(_Condition(self, test, False, "early-exit", through, statement, not statement.orelse))
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
        for node in nodes(target):
            value = self.flow.env.get(node.id) if isinstance(node, ast.Name) else None
            if value is not None and dotted(value) is None and isinstance(node, ast.Name):
                del self.flow.env[node.id]  # a condition on an element is not one on what it was taken from
                self.flow.carriers.pop(node.id, None)

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
        merged: Flow | None = None
        leaving: list[Formula] = []
        open_cases = TRUE  # no case so far has matched
        for case in statement.cases:
            self.flow = before.copy()
            pattern = case.pattern
            wildcard = isinstance(pattern, ast.MatchAs) and pattern.pattern is None
            matched = TRUE if wildcard else self.formula(_case_test(statement.subject, pattern))
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

    def _merge(self, test: ast.expr | None, one: Flow, other: Flow) -> Flow:
        merged = Flow(taint=dict(one.taint))
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
        self.lambdas.pop(key, None)
        if isinstance(value, ast.Lambda):
            self.lambdas[key] = (value, tuple(self.guard))

    def _bind(self, key: str, value: ast.expr) -> None:
        # what `self.x` stands for is the class's business: other methods see it too
        wanted = key not in self.profile.flag_names and not key.startswith("self.") and is_condition(value)
        resolved = self.resolve(value) if wanted else None  # in terms of what the name was before
        self.flow.env.pop(key, None)
        self.flow.carriers.pop(key, None)
        if resolved is None:
            return
        if (resolved is value or is_condition(resolved)) and not _names(resolved, key):
            self.flow.env[key] = resolved
            self.flow.carriers[key] = value

    def _bind_again(self, key: str, statement: ast.AugAssign) -> None:
        """`skip |= asked()`: a condition joined to the one before; anything else is unknown."""
        join = JOINS.get(type(statement.op))
        old = self.flow.env.pop(key, None)
        self.flow.carriers.pop(key, None)
        if join is not None and old is not None:
            value = self.resolve(statement.value)
            both = ast.BoolOp(join(), [old, value])
            if is_condition(old) and is_condition(value) and is_condition(both):
                self.flow.env[key] = both

    def _note_attribute(self, name: str, value: ast.expr) -> None:
        calls = () if isinstance(value, (*LEAVES, ast.Attribute)) else ast.walk(value)
        callees = tuple(
            dict.fromkeys(text for n in calls if isinstance(n, ast.Call) and (text := dotted(n.func)) is not None)
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
        if isinstance(node, LEAVES):
            return
        if isinstance(node, ast.Attribute):
            self.expression(node.value)
            return
        if isinstance(node, ast.IfExp):
            self.expression(node.test)
            for branch, polarity in ((node.body, True), (node.orelse, False)):
                self.guard.append(_Condition(self, node.test, polarity, "ternary"))
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
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            self._comprehension(node)
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.expression(child)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        """What is computed for each element, under the `if`s of the loops."""
        saved, self.flow = self.flow, self.flow.copy()
        depth = len(self.guard)
        for loop in node.generators:
            self.expression(loop.iter)
            self._assign_elements(loop.target, loop.iter)
            for test in loop.ifs:
                self.expression(test)
                self.guard.append(_Condition(self, test, True, "if", plain=False))
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self.expression(part)
        del self.guard[depth:]
        self.flow = saved

    def _lambda(self, node: ast.Lambda) -> None:
        saved, self.flow = self.flow, self.flow.copy()
        name, self.qualname = self.qualname, f"{self.qualname}.<lambda>"
        for argument in node.args.args:
            self.flow.env.pop(argument.arg, None)
            self.flow.taint[argument.arg] = frozenset({Param(argument.arg)})
        self.expression(node.body)
        self.flow, self.qualname = saved, name

    def _call_lambda(self, name: str, node: ast.Call) -> None:
        """What a local lambda does with what it is given here: its reductions stand under the guard of the call."""
        held = self.lambdas.pop(name)  # while it runs: it may call itself
        body, made = held
        guard = self.guard
        self.guard = [*made, *(_elsewhere(part) for part in guard if part not in made)]
        saved, self.flow = self.flow, self.flow.copy()
        qualname, self.qualname = self.qualname, f"{self.qualname}.<lambda>"
        given = dict(zip((a.arg for a in body.args.args), node.args, strict=False))
        given.update({k.arg: k.value for k in node.keywords if k.arg is not None})
        taints = {argument: self.origins(value) for argument, value in given.items()}
        for argument, taint in taints.items():
            self.flow.env.pop(argument, None)
            self.flow.taint[argument] = taint
        self.expression(body.body)
        self.flow, self.qualname, self.guard = saved, qualname, guard
        self.lambdas[name] = held

    def _call(self, node: ast.Call) -> None:
        self.expression(node.func) if not isinstance(node.func, ast.Name | ast.Attribute) else None
        if isinstance(node.func, ast.Attribute):
            self.expression(node.func.value)
        if isinstance(node.func, ast.Name) and node.func.id in self.lambdas:
            self._call_lambda(node.func.id, node)
        callee = self.callee(node)
        # what a norm consumes must be whole: nobody further down can sum it
        consumed = callee is not None and self.profile.is_barrier(callee.rsplit(".", 1)[-1])
        self.consumers += consumed
        for value in (*node.args, *(k.value for k in node.keywords)):
            self.expression(value.value if isinstance(value, ast.Starred) else value)
        self.consumers -= consumed
        if callee is None:
            return
        last = callee.rsplit(".", 1)[-1]
        self.in_place(node, last)
        axis = self._axis(node, last)
        if axis is not None:
            if not self.quiet:
                self._site(node, callee, last, axis)
            return
        if not self.quiet:
            self._note_call(node, callee)
            if self.profile.is_scatter(last) and not _attention_group(node):
                condition = conj(part.formula for part in self.guard)
                self.scatters.append(ScatterFact(callee, span_of(node, self.file.lines), condition))
            if self.watch is not None and self.watch == span_of(node, self.file.lines):
                self.watched = _all_of(self.guard)
        if last[:1].isupper() or last.lstrip("_")[:1].isupper():
            self.builds[callee] = None

    def _note_call(self, node: ast.Call, callee: str) -> None:
        arguments = self._arguments(node)
        flagged = any(a.keyword in self.profile.flag_names or a.text in self.profile.flag_names for a in arguments)
        if flagged or any(a.origins for a in arguments):
            span = span_of(node, self.file.lines)
            for one in self.callees(node) or (callee,):
                self.calls.append(CallFact(one, span, self.qualname, self.class_name, arguments))

    def _arguments(self, node: ast.Call) -> tuple[Argument, ...]:
        found = []
        for keyword, value in (*((None, a) for a in node.args), *((k.arg, k.value) for k in node.keywords)):
            literal = value.value if isinstance(value, ast.Constant) and isinstance(value.value, bool) else None
            text = value.id if isinstance(value, ast.Name) else ""
            found.append(Argument(keyword, text, literal, self.origins(value)))
        return tuple(found)

    def _axis(self, node: ast.Call, last: str) -> Axis | None:
        """The axis when this call is a reduction, None when it is not one."""
        if last in self.profile.collectives:
            return self.profile.collectives[last]
        if last in self.profile.wrappers:
            return "TP"
        if not is_reduction_name(last):
            return None
        groups = [unparse(k.value) for k in node.keywords if k.arg == "group"]
        if isinstance(node.func, ast.Attribute):
            groups.append(unparse(node.func.value))
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
                self.origins(operand) if operand is not None and sums(node) else NOTHING,
                tuple(spellings),
                span_of(statement, self.file.lines),
                shape,
                unparse(operand) if operand is not None else "",
                target,
                _group(node.func),
            )
        )

    def _note_backends(self, statement: ast.If, condition: Formula, leaves: bool) -> None:
        parts = condition.operands if isinstance(condition, And) else (condition,)
        opposite = disj(negate(part) for part in parts)  # `not is_a() and not is_b()` lists them, too
        members = _backend_members(condition, self.profile) or _backend_members(opposite, self.profile)
        if members:
            chosen = frozenset(
                text[5:]
                for n in nodes(statement)
                if isinstance(n, ast.Call) and (text := dotted(n.func) or "").startswith("self.")
            )
            span = span_of(statement.test, self.file.lines)
            self.backend_tests.append(BackendTest(members, span, self.qualname, self.class_name, chosen, leaves))


def _joined(node: ast.expr, positive: bool) -> list[ast.expr] | None:
    """The operands of an `and` that must hold, or of an `or` that must not."""
    join = ast.And if positive else ast.Or
    return node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, join) else None


def _attention_group(node: ast.Call) -> bool:
    """Whether a call is made on a process group of the attention (or of the pipeline), which holds no experts' sum."""
    return isinstance(node.func, ast.Attribute) and group_axis(unparse(node.func.value)) == "other"


def _names(node: ast.expr, name: str) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id == name for inner in nodes(node))


def _elsewhere(part: _Condition | GuardPart) -> _Condition | GuardPart:
    """A condition that holds, but does not stand around the code that it guards."""
    if isinstance(part, GuardPart):
        return replace(part, plain=False)
    return part.elsewhere()


def _case_test(subject: ast.expr, pattern: ast.pattern) -> ast.expr:
    """The condition under which a pattern without captures matches; for any other, a name for "it matches"."""
    if isinstance(pattern, ast.MatchSingleton):
        return ast.Compare(subject, [ast.Is()], [ast.Constant(pattern.value)])
    if isinstance(pattern, ast.MatchOr):
        return ast.BoolOp(ast.Or(), [_case_test(subject, inner) for inner in pattern.patterns])
    value = pattern.value if isinstance(pattern, ast.MatchValue) else ast.Name(ast.unparse(pattern), ast.Load())
    return ast.Compare(subject, [ast.Eq()], [value])


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


def _group(called: ast.expr) -> str | None:
    """`get_moe_tp_group` of `distributed.get_moe_tp_group().all_reduce`."""
    group = called.value if isinstance(called, ast.Attribute) else None
    if not isinstance(group, ast.Call) or group.args or group.keywords:
        return None
    return (dotted(group.func) or "").rpartition(".")[2] or None


def _shape(statement: ast.stmt, call: ast.Call) -> tuple[str, str | None]:
    targets, value = assignment(statement) or ([], None)
    if value is call and len(targets) == 1:
        target = targets[0]
        return ("assign", dotted(target)) if isinstance(target, ast.Name | ast.Attribute) else ("other", None)
    if isinstance(statement, ast.Return) and statement.value is call:
        return "return", None
    return "other", None
