"""Hand layer-context flags down: from the layer that can ask for them to the reduction that must honour them.

A reduction whose function does not know a flag cannot pass it to the helper. `hand_down` plans the missing links: a
parameter (False by default) for every function on the way, the keyword in every call on the way, and, in the layer's
call, the question to its communicator. Everything it cannot prove it refuses, with the reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from msgspec import Struct

from moe_lint.callers import Callers, Edge, Layer
from moe_lint.facts import Call
from moe_lint.index import ProjectIndex, Ref
from moe_lint.model import FixPlan, Safety, Span
from moe_lint.profile import Flag
from moe_lint.rules._layers import absorbs, flag_of
from moe_lint.rules.base import Context
from moe_lint.sites import Site


class _Refused(Exception):
    """Why a flag cannot be handed down by a rewrite."""


class HandedDown(Struct, frozen=True):
    """The rewrites that make flags known at a site."""

    #: flag -> its spelling at the site
    flags: tuple[tuple[str, str], ...]
    #: those that some layer asks for; the others keep their default
    asked: tuple[str, ...]
    parts: tuple[FixPlan, ...]
    note: str


class _Route(Struct, frozen=True):
    """The calls from a layer to a reduction."""

    layer: Layer
    edges: tuple[Edge, ...]


def hand_down(site: Site, context: Context) -> HandedDown | str | None:
    """The plan, or why there is none; None where the site knows every flag or nothing absorbs around it."""
    helper = context.policy.helper
    known = dict(site.flags)
    missing = [(parameter, flag) for parameter, flag in helper.flags if flag not in known] if helper else []
    if not missing or not site.absorber:
        return None
    try:
        return _Planner(site, context, missing).plan()
    except _Refused as refused:
        return str(refused)


class _Planner:
    def __init__(self, site: Site, context: Context, missing: list[tuple[str, str]]) -> None:
        self.site = site
        self.callers: Callers = context.callers
        self.index: ProjectIndex = context.index
        self.missing = missing
        self.routes = [_Route(layer, edges) for layer, edges in self.callers.routes_to(site)]
        #: function -> the parameters that it gets
        self.parameters: dict[Ref, dict[str, None]] = {}
        #: (file, call) -> the keywords that it gets
        self.keywords: dict[tuple[str, Span], dict[str, str]] = {}
        self.asked: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def plan(self) -> HandedDown:
        if not self.routes:
            raise _Refused("no call from a layer to it was found")
        for parameter, flag in self.missing:
            for route in self.routes:
                self._hand(route, parameter, flag)
        if not self.asked:
            raise _Refused("; ".join(dict.fromkeys(self.left.values())))
        for function, names in self.parameters.items():
            self._check_function(function, names)
        for route in self.routes:
            for edge in route.edges:
                handed = self.keywords.get((edge.frame.path, edge.call.span))
                if handed:
                    self._check_call(edge, handed)
        return HandedDown(
            tuple((flag, parameter) for parameter, flag in self.missing),
            tuple(self.asked),
            tuple(self._parts()),
            self._note(),
        )

    # --- one flag along one route

    def _hand(self, route: _Route, parameter: str, flag: str) -> None:
        first, *inner = route.edges
        value = self._value(route.layer, first, flag)
        if value is None:
            self._take(first, parameter, flag)
        else:
            self._pass(first, parameter, flag, value)
        for edge in inner:
            caller = edge.frame.function
            spelled = dict(edge.call.known).get(flag)
            if spelled is None and parameter not in self.parameters.get(caller, {}):
                raise _Refused(f"`{caller.name}` assigns `{flag}` itself")
            self._pass(edge, parameter, flag, spelled or parameter)

    def _pass(self, edge: Edge, parameter: str, flag: str, value: str) -> None:
        """The call hands the flag on, under the name that the callee has for it."""
        if any(bound.passed.hides for bound in edge.bound):
            raise _Refused(f"`{edge.frame.function.name}` passes unnamed arguments")
        name = self._take(edge, parameter, flag)
        if edge.passes(flag):
            return
        if any(bound.parameter == name for bound in edge.bound):
            raise _Refused(f"`{edge.frame.function.name}` passes another value for `{name}`")
        given = self.keywords.setdefault((edge.frame.path, edge.call.span), {})
        if given.setdefault(name, value) != value:
            raise _Refused(f"the layers that share `{edge.frame.function.name}` do not agree about `{flag}`")

    def _take(self, edge: Edge, parameter: str, flag: str) -> str:
        """The callee has a parameter for the flag; its name."""
        target = edge.target.function
        name = self._parameter(target, flag)
        if name is None:
            self.parameters.setdefault(target, {})[parameter] = None
        return name or parameter

    def _parameter(self, function: Ref, flag: str) -> str | None:
        facts = self.index.facts(function.path)
        assert facts is not None
        spellings = self.index.profile.flag_names
        return next((p for p in facts.header(function.name)[1] if spellings.get(p) == flag), None)

    # --- what the layer knows

    def _value(self, layer: Layer, edge: Edge, flag_name: str) -> str | None:
        """What the layer's call passes for a flag: its own knowledge, or the question to its communicator."""
        flag = flag_of(self.index.profile, flag_name)
        where = edge.frame.function.name
        if not absorbs(self.callers, layer, edge, flag):
            self.left.setdefault(flag.name, f"`{layer.owner.name}` never marks a tensor as still owing its sum")
            return None
        known = dict(edge.call.known).get(flag.name)
        if known is None:
            known = self._question(layer, edge, flag)
        if known is not None:
            self.asked.setdefault(flag.name, where)
        return known

    def _question(self, layer: Layer, edge: Edge, flag: Flag) -> str | None:
        frame, where = edge.frame, edge.frame.function.name
        names = {built.attribute for built in layer.absorbers}
        conduct = self.callers.conduct(frame.function)
        if len(names) != 1 or conduct is None or frame.itself != "self":
            self.left.setdefault(flag.name, f"which absorber `{where}` is to ask cannot be told")
            return None
        (attribute,) = names
        methods = [self.index.method(b.owner, flag.predicate) if flag.predicate else None for b in layer.absorbers]
        if None in methods:
            self.left.setdefault(flag.name, f"`self.{attribute}` has no `{flag.predicate}`")
            return None
        needed: set[tuple[str, ...]] = set()
        for method in methods:
            assert method is not None
            facts = self.index.facts(method.path)
            assert facts is not None
            _, params, defaults = facts.header(method.name)
            needed.add(tuple(p for p in params[1:] if p not in defaults))
        (arguments, *others) = needed
        if others or not set(arguments) <= set(conduct.params):
            self.left.setdefault(flag.name, f"`{where}` lacks an argument of `{flag.predicate}`")
            return None
        if not flag.last and not self._settles(conduct.calls, edge.call, f"self.{attribute}."):
            self.left.setdefault(flag.name, f"`{where}` does not hand the result to `self.{attribute}`")
            return None
        return f"self.{attribute}.{flag.predicate}({', '.join(arguments)})"

    def _settles(self, calls: Iterable[Call], block: Call, receiver: str) -> bool:
        """Whether the communicator gets something to do after the block, as whoever is to sum must."""
        questions = {f"{receiver}{flag.predicate}" for flag in self.index.profile.flags}
        return any(
            call.span > block.span and call.callee.startswith(receiver) and call.callee not in questions
            for call in calls
        )

    # --- what cannot be done surely

    def _check_function(self, function: Ref, names: Iterable[str]) -> None:
        conduct = self.callers.conduct(function)
        facts = self.index.facts(function.path)
        assert conduct is not None
        assert facts is not None
        if any(conduct.variadic):
            raise _Refused(f"`{function.name}` takes unnamed arguments")
        line, last = facts.extent(function.name)
        text = facts.lines[line - 1 : last]
        # under a condition of its own a method keeps its indentation: comments and strings may begin further left
        body = ast.walk(ast.parse("\n".join(["if 1:", *text] if text[0][:1].isspace() else text)))
        used = {node.id for node in body if isinstance(node, ast.Name)}
        if line > 1 and facts.lines[line - 2].lstrip().startswith("@"):
            raise _Refused(f"`{function.name}` is decorated")
        for name in names:
            if name in used:
                raise _Refused(f"`{function.name}` uses the name `{name}` already")
        owner, _, method = function.name.rpartition(".")
        for override in self._overrides(Ref(function.path, owner), method) if owner else ():
            if override not in self.parameters and not all(self._has(override, name) for name in names):
                raise _Refused(f"`{override.name}` overrides `{function.name}`")

    def _has(self, function: Ref, name: str) -> bool:
        facts = self.index.facts(function.path)
        return facts is not None and name in facts.header(function.name)[1]

    def _overrides(self, owner: Ref, method: str) -> Iterator[Ref]:
        stack, seen = self.index.subclasses(owner), {owner}
        while stack:
            one = stack.pop()
            if one in seen:
                continue
            seen.add(one)
            facts = self.index.facts(one.path)
            if facts is not None and method in facts.classes[one.name].methods:
                yield Ref(one.path, f"{one.name}.{method}")
            stack += self.index.subclasses(one)

    def _check_call(self, edge: Edge, names: Iterable[str]) -> None:
        """Whatever the call may reach takes the keywords."""
        where = edge.frame.function.name
        for target in self.callers.reached(edge):
            gets = self.parameters.get(target, {})
            lacking = next((name for name in names if name not in gets and not self._has(target, name)), None)
            if lacking is not None:
                raise _Refused(f"the call in `{where}` may also reach `{target.name}`, which takes no `{lacking}`")
        if not self.callers.all_known(edge):
            raise _Refused(f"what `{edge.call.callee}` may be in `{where}` cannot be told")

    # --- the result

    def _parts(self) -> Iterator[FixPlan]:
        """One part per place and flag: those of several sites add up."""
        for function, names in self.parameters.items():
            facts = self.index.facts(function.path)
            assert facts is not None
            line, _ = facts.extent(function.name)
            for name in names:
                yield _part(function.path, "parameters", Span(line, 1, line, 1), name, "False")
        for (path, span), given in self.keywords.items():
            for name, value in given.items():
                yield _part(path, "keywords", span, name, value)

    def _note(self) -> str:
        parts = [f"`{where}` hands `{flag}` down" for flag, where in self.asked.items()]
        parts += [
            f"`{flag}` stays False: {self.left.get(flag, 'nobody asks for it')}"
            for _, flag in self.missing
            if flag not in self.asked
        ]
        changed = {(path, span) for path, span in self.keywords}
        others = {
            route.edges[0].frame.function.name
            for route in self.routes
            if (route.edges[0].frame.path, route.edges[0].call.span) not in changed
            and not all(route.edges[0].passes(flag) for flag in self.asked)
        }
        parts += [f"`{name}` leaves it at False" for name in sorted(others)]
        return "; ".join(parts)


def _part(path: str, kind: str, span: Span, name: str, value: str) -> FixPlan:
    return FixPlan(
        path,
        "parameters" if kind == "parameters" else "keywords",
        span,
        None,
        True,
        (),
        "",
        ((name, value),),
        "",
        Safety.CORRECTIVE,
        f"takes `{name}`" if kind == "parameters" else f"hands `{name}` down",
        call=span if kind == "keywords" else None,
    )
