"""Who calls whom: layers, the calls that they make and bring about, and the reductions at the end."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

from moe_lint.callers.construction import Constructions
from moe_lint.callers.data import Bound, Built, Callee, Edge, Frame, Instance, Layer, Sum
from moe_lint.expressions import dotted
from moe_lint.facts import Call
from moe_lint.formula import (
    FALSE,
    TRUE,
    Atom,
    Formula,
    TooManyAtoms,
    atom_set,
    conj,
    replace_atoms,
    satisfiable,
    substitute,
)
from moe_lint.index import ProjectIndex, Ref
from moe_lint.model import Span
from moe_lint.policy import Policy
from moe_lint.profile import matches
from moe_lint.remembered import remembered
from moe_lint.sites import Site, without_topology

#: How many calls down from a layer a reduction is looked for.
_DEPTH = 6
_ISINSTANCE = re.compile(r"^isinstance\(([\w.]+), (.+)\)$")


class Callers(Constructions):
    """Answers questions about layers and what they call. Everything is found when it is asked for."""

    def __init__(self, index: ProjectIndex, policy: Policy, sites: tuple[Site, ...]) -> None:
        super().__init__(index)
        self.policy = policy
        self.sites = sites
        self._edges: dict[Frame, tuple[Edge, ...]] = {}
        self._frames: dict[Frame, Frame] = {}
        self._worth: dict[Frame, Mapping[str, Formula]] = {}
        self._found: dict[tuple[Ref, Ref | None, str], tuple[tuple[Call, Formula, tuple[Callee, ...]], ...]] = {}
        self._parameters: dict[Ref, frozenset[str]] = {}
        self._possible: dict[Formula, bool | None] = {}
        self._summed: dict[Edge, tuple[Sum, ...]] = {}
        self._onward: dict[Frame, tuple[Edge, ...]] = {}
        self._places: dict[Frame, tuple[Frame, ...]] = {}
        #: what is looked for -> place -> whether it is reached from there
        self._below: dict[object, dict[Frame, bool]] = {}

    # --- layers

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every class that builds an absorber in its constructor and has a `forward`, by place."""
        found: dict[Ref, Layer] = {}
        for path in sorted(self.index.texts):
            lines = self.index.absorber_lines(path)
            facts = self.index.facts(path) if lines else None
            if facts is None:
                continue
            lines = [*lines, *self.index.makers_called(path)]
            frontier = [Ref(path, name) for line in lines if (name := facts.class_at(line)) is not None]
            while frontier:
                owner = frontier.pop()
                if owner not in found and not self.index.is_absorber(owner):
                    layer = self._layer(owner)
                    if layer is not None:
                        found[owner] = layer
                    frontier += self.index.subclasses(owner)
        return tuple(found[owner] for owner in sorted(found))

    def _layer(self, owner: Ref) -> Layer | None:
        absorbers = tuple(
            built
            for group in self.built(owner).values()
            for built in group
            if matches(built.owner.name.rsplit(".", 1)[-1], self.index.profile.absorber_constructors)
        )
        entry = self.index.method(owner, "forward")
        if not absorbers or entry is None:
            return None
        return Layer(owner, absorbers, tuple(self._own_frames(owner)))

    def _own_frames(self, owner: Ref) -> Iterator[Frame]:
        """The layer's functions that are in force, each under what is published around all of its calls."""
        instance = Instance(owner)
        functions = (self.index.method(owner, name) for name in self.index.method_names(owner) if name != "__init__")
        started = [Frame(function, instance) for function in functions if function is not None]
        seen: dict[tuple[Ref, str], Frame] = {}
        queue = sorted(started, key=lambda frame: frame.function.name.rsplit(".", 1)[-1] != "forward")
        while queue:
            frame = queue.pop(0)
            key = (frame.function, frame.itself)
            if key in seen:
                continue
            seen[key] = frame
            # what the layer's own functions call of it comes first: they know what is published around the call
            inner = [edge.target for edge in self.edges(frame) if edge.target.instance == instance]
            queue = inner + queue
        yield from seen.values()

    # --- who is called

    def edges(self, frame: Frame) -> tuple[Edge, ...]:
        """The calls of a function that reach others in the tree, with what these know then."""
        if frame not in self._edges:
            self._edges[frame] = tuple(self._find_edges(frame, lambda place: True))
        return self._edges[frame]

    def onward(self, frame: Frame) -> tuple[Edge, ...]:
        """The calls of a function that lead to reductions or to functions that take flags: few of them do."""
        if frame not in self._onward:
            self._onward[frame] = (
                tuple(edge for edge in self._edges[frame] if self._leads_on(edge.target))
                if frame in self._edges
                else tuple(self._find_edges(frame, self._leads_on))
            )
        return self._onward[frame]

    def edges_to(self, frame: Frame, function: Ref) -> Iterable[Edge]:
        """Those of a function's calls that reach one other function."""
        if frame in self._edges:
            return (edge for edge in self._edges[frame] if edge.target.function == function)
        return self._find_edges(frame, lambda place: place.function == function)

    def _find_edges(self, frame: Frame, asked: Callable[[Frame], bool]) -> Iterator[Edge]:
        """The calls of a function that lead to a place that is asked for."""
        held: dict[Formula, Formula] = {}
        for call, when, callees in self._calls(frame):
            callees = tuple(callee for callee in callees if asked(_place(callee, frame)))
            if not callees:
                continue
            if when not in held:
                asks_helper = self.policy.helper_calls(when)
                told = self._with_helper(frame, when) if asks_helper else self.told(frame, when)
                held[when] = conj((frame.holds, told))
            holds = held[when]
            for callee in callees if holds != FALSE else ():
                condition = self._narrowed_to(callee.built, frame, holds)
                if callee.built is None or self.possible(condition):
                    yield Edge(frame, call, self._target(frame, call, callee, condition), callee.bound, callee.built)

    def _calls(self, frame: Frame) -> tuple[tuple[Call, Formula, tuple[Callee, ...]], ...]:
        """The calls of a function that may run others in the tree, and which, whatever holds around them.

        Each with its condition where every group has more than one rank. Found once for all frames of a function and
        a class.
        """
        owner = frame.instance.owner if frame.instance is not None else None
        key = (frame.function, owner, frame.itself)
        if key not in self._found:
            conduct, profile = self.conduct(frame.function), self.index.profile
            told = (
                (call, tuple(self._find_callees(frame, owner, call))) for call in (conduct.calls if conduct else ())
            )
            self._found[key] = tuple(
                (call, without_topology(call.condition, profile), callees) for call, callees in told if callees
            )
        return self._found[key]

    def _find_callees(self, frame: Frame, owner: Ref | None, call: Call) -> Iterator[Callee]:
        head, _, rest = call.callee.partition(".")
        if head in (frame.itself, "super()") and rest and owner is not None:
            yield from self._methods(frame, owner, call, rest, head == "super()")
        elif head != frame.itself and "?" not in call.callee and not call.callee.endswith("()"):
            yield from self._functions(frame, call)

    def _methods(self, frame: Frame, owner: Ref, call: Call, rest: str, above: bool) -> Iterator[Callee]:
        name, _, entry = rest.partition(".")
        method: Ref | None
        if above:
            mro = self.index.mro(owner)
            home = Ref(frame.path, frame.class_name or "")
            skip = mro.index(home) + 1 if home in mro else 1
            method = self.index.method(owner, rest, skip=skip)
        else:
            method = self.index.method(owner, name) if not entry else None
        if method is not None:
            yield self._callee(call, method, "self")
            return
        if "." in entry or self.index.profile.is_barrier(name):
            return
        for built in self.built(owner).get(name, ()):
            if self.index.is_absorber(built.owner):
                continue
            entries = (entry,) if entry else ("forward", "__call__")
            target = next((m for e in entries if (m := self.index.method(built.owner, e))), None)
            if target is not None:
                yield self._callee(call, target, "self", built)

    def _functions(self, frame: Frame, call: Call) -> Iterator[Callee]:
        """A module-level function; one that is given the instance acts for it."""
        found = self.index.resolve(frame.path, call.callee)
        facts = self.index.facts(found.path) if found is not None and found.path in self.index.texts else None
        if found is None or facts is None or found.name not in facts.functions or "." in found.name:
            return
        bound = self.bind(call, found, skip_first=False)
        acting = (b.parameter for b in bound if b.passed.text == frame.itself and b.parameter is not None)
        yield self._callee(call, found, next(acting, None))

    def _callee(self, call: Call, target: Ref, itself: str | None, built: Built | None = None) -> Callee:
        bound = self.bind(call, target, skip_first="." in target.name)
        return Callee(target, itself, bound, tuple(self.values(target, bound)), built)

    def values(self, target: Ref, bound: tuple[Bound, ...]) -> Iterator[tuple[str, Formula]]:
        """Parameter (a flag by its name) -> its truth value in the caller's terms, defaults put in."""
        facts = self.index.facts(target.path)
        if facts is None:
            return
        spellings = self.index.profile.flag_names
        hidden = any(b.passed.hides for b in bound)
        given = {b.parameter: b.passed.formula for b in bound if b.parameter is not None}
        _, params, defaults = facts.header(target.name)
        for param in params:
            formula = given.get(param)
            if param in given:
                if formula is not None:
                    yield spellings.get(param, param), formula
            elif param in defaults and not hidden and defaults[param] is not None:
                yield spellings.get(param, param), TRUE if defaults[param] else FALSE

    def _narrowed_to(self, built: Built | None, frame: Frame, holds: Formula) -> Formula:
        """When a call reaches what it may run, if it is made under a condition."""
        if built is None:
            return holds
        narrowed = self._narrowed(holds, f"{frame.itself}.{built.attribute}", built.owner, frame.path)
        return conj((narrowed, built.condition))

    def _target(self, frame: Frame, call: Call, callee: Callee, holds: Formula) -> Frame:
        """The function that is called, with what it knows in the layer's terms."""
        instance = frame.instance if callee.itself is not None else None
        if callee.built is not None and instance is not None:
            instance = self.instance(callee.built, instance)
        context = dict(frame.context)
        for published in call.published:
            formula = published.formula
            context[published.keyword or ""] = (
                self.told(frame, formula) if formula is not None else Atom(published.text)
            )
        values = tuple((name, self.told(frame, formula)) for name, formula in callee.values)
        target = Frame(
            callee.function, instance, callee.itself or "self", values, tuple(sorted(context.items())), holds
        )
        return self._frames.setdefault(target, target)

    def forward_frames(self, layer: Layer) -> tuple[Frame, ...]:
        """The layer's functions that its `forward` reaches."""
        instance = Instance(layer.owner)
        found: dict[Frame, None] = {}
        stack = [frame for frame in layer.frames if frame.function.name.rsplit(".", 1)[-1] == "forward"]
        while stack:
            frame = stack.pop()
            if frame not in found:
                found[frame] = None
                stack += [edge.target for edge in self.edges(frame) if edge.target.instance == instance]
        return tuple(found)

    # --- what is true where

    def told(self, frame: Frame, formula: Formula) -> Formula:
        """A formula of a function, in the layer's terms: parameters, constants and published flags put in."""
        return replace_atoms(formula, self._known(frame))

    def _known(self, frame: Frame) -> Mapping[str, Formula]:
        """What the atoms of a function are worth in the layer's terms."""
        if frame not in self._worth:
            values, context = dict(frame.values), dict(frame.context)
            known = {**dict(frame.instance.fixed if frame.instance is not None else ()), **values}
            for flag in self.index.profile.flags:
                source = values if flag.name in self._params(frame.function) else context
                known.pop(flag.name, None)
                if flag.name in source:
                    known[flag.name] = source[flag.name]
            self._worth[frame] = known
        return self._worth[frame]

    def _params(self, function: Ref) -> frozenset[str]:
        """The parameters of a function, flags by their names."""
        if function not in self._parameters:
            facts = self.index.facts(function.path)
            known = facts is not None and function.name in facts.functions
            params = facts.header(function.name)[1] if facts is not None and known else ()
            spellings = self.index.profile.flag_names
            self._parameters[function] = frozenset(spellings.get(p, p) for p in params)
        return self._parameters[function]

    def _narrowed(self, condition: Formula, receiver: str, owner: Ref, path: str) -> Formula:
        """The condition for a receiver of this class: `isinstance(receiver, C)` is decided."""
        tests = ((atom, _ISINSTANCE.match(atom)) for atom in atom_set(condition) if atom.startswith("isinstance("))
        decided = {atom: self._is_one(owner, test[2], path) for atom, test in tests if test and test[1] == receiver}
        return replace_atoms(
            condition, {atom: TRUE if is_one else FALSE for atom, is_one in decided.items() if is_one is not None}
        )

    def _is_one(self, owner: Ref, tested: str, path: str) -> bool | None:
        """Whether a class is one of those that are written in an `isinstance` test; None when they are not known."""
        node = ast.parse(tested, mode="eval").body
        names = [dotted(n) for n in (node.elts if isinstance(node, ast.Tuple) else [node])]
        refs = [self.index.resolve(path, name) for name in names if name is not None]
        if None in refs or len(refs) != len(names):
            return None
        classes = self.index.mro(owner)
        return any(ref in classes for ref in refs)

    def possible(self, formula: Formula, unknown: bool = True) -> bool:
        """Whether a condition can hold (one a2a backend at a time); ``unknown`` where it has too many atoms to tell."""
        if formula not in self._possible:
            try:
                self._possible[formula] = satisfiable(conj((formula, self.policy.feasible(atom_set(formula)))))
            except TooManyAtoms:
                self._possible[formula] = None
        found = self._possible[formula]
        return unknown if found is None else found

    # --- reductions

    @cached_property
    def _sites(self) -> dict[Ref, list[Site]]:
        found: dict[Ref, list[Site]] = {}
        for site in self.sites:
            found.setdefault(Ref(site.path, re.sub(r"(\.<lambda>)+$", "", site.raw.function)), []).append(site)
        return found

    def sums(self, edge: Edge) -> tuple[Sum, ...]:
        """The reductions that a call reaches, with when they run."""
        if edge not in self._summed:
            self._summed[edge] = tuple(self._sums(edge.target, (edge,), frozenset()))
        return self._summed[edge]

    def sums_of(self, function: Ref) -> tuple[Sum, ...]:
        """The reductions that a module-level function reaches, whatever flags are published around its call."""
        context = tuple((flag.name, Atom(flag.name)) for flag in self.index.profile.flags)
        return tuple(self._sums(Frame(function, None, context=context), (), frozenset()))

    @cached_property
    def flags_at(self) -> dict[tuple[str, Span], frozenset[str]]:
        """(file, place) of a reduction -> the flags that some layer decides it with; none for one out of reach."""
        flags = {flag.name for flag in self.index.profile.flags}
        found: dict[tuple[str, Span], frozenset[str]] = {}
        for layer in self.layers:
            for frame in layer.frames:
                for edge in self.edges(frame):
                    for one in self.sums(edge) if edge.built is not None else ():
                        key = (one.site.path, one.site.raw.span)
                        found[key] = found.get(key, frozenset()) | (atom_set(one.condition) & flags)
        return found

    def _sums(self, frame: Frame, route: tuple[Edge, ...], seen: frozenset[Ref]) -> Iterator[Sum]:
        if frame.function in seen or len(route) > _DEPTH or not self._may_sum(frame):
            return
        for site in self._sites.get(frame.function, ()):
            condition = conj((frame.holds, self.guard(frame, site)))
            if condition != FALSE:
                yield Sum(site, condition, route)
        for edge in self.onward(frame):
            if edge.target.function.path in self.index.texts and edge.target.function not in seen:
                yield from self._sums(edge.target, (*route, edge), seen | {frame.function})

    def _may_sum(self, frame: Frame) -> bool:
        """Whether a function reaches a reduction by any calls, whatever holds around them: most calls lead to none."""
        return self._leads_to(frame, "a reduction", self._sites.__contains__)

    def _leads_on(self, frame: Frame) -> bool:
        """Whether a function reaches a reduction, or a function that takes a flag."""
        return self._leads_to(frame, "a reduction or a flag", lambda f: f in self._sites or self._takes_flag(f))

    def _takes_flag(self, function: Ref) -> bool:
        return not self._params(function).isdisjoint(self.index.profile.flag_names.values())

    def _leads_to(self, frame: Frame, wanted: object, is_wanted: Callable[[Ref], bool]) -> bool:
        """Whether a function is wanted, or reaches one that is by any calls, whatever holds around them."""
        below = self._below.setdefault(wanted, {})
        start = _bare(frame.function, frame.instance.owner if frame.instance is not None else None, frame.itself)
        if start not in below:
            callers: dict[Frame, list[Frame]] = {start: []}
            stack = [start]
            while stack:
                place = stack.pop()
                for inner in self._places_called(place):
                    if inner not in callers and inner not in below:
                        stack.append(inner)
                    callers.setdefault(inner, []).append(place)
            leading = [f for f in callers if below.setdefault(f, False) or is_wanted(f.function)]
            while leading:
                place = leading.pop()
                below[place] = True
                leading += [outer for outer in callers.get(place, ()) if not below[outer]]
        return below[start]

    def _places_called(self, place: Frame) -> tuple[Frame, ...]:
        """The functions that one calls, as far as it is known whose methods they are."""
        if place not in self._places:
            called = (callee for _, _, callees in self._calls(place) for callee in callees)
            inside = (callee for callee in called if callee.function.path in self.index.texts)
            self._places[place] = tuple(dict.fromkeys(_place(callee, place) for callee in inside))
        return self._places[place]

    def _paths(
        self, layer: Layer, calls: Callable[[Frame], tuple[Edge, ...]], leads: Callable[[Frame], bool]
    ) -> Iterator[tuple[Frame, Edge]]:
        """The calls that a layer makes or brings about, once: (the layer's function that it starts in, the call).

        Its own are followed, and ``calls`` of the functions that ``leads`` says lead anywhere.
        """
        seen: set[Edge] = set()
        for start in layer.frames:
            stack = list(reversed(self.edges(start)))
            depth: dict[Edge, int] = {}
            while stack:
                edge = stack.pop()
                level = depth.get(edge, 0)
                if edge in seen or edge.target.instance == start.instance:
                    continue  # the layer's own functions are starts themselves
                seen.add(edge)
                yield start, edge
                if level < _DEPTH and edge.target.function.path in self.index.texts and leads(edge.target):
                    inner = calls(edge.target)
                    depth.update(dict.fromkeys(inner, level + 1))
                    stack += reversed(inner)

    @cached_property
    def calls(self) -> tuple[tuple[Layer, Frame, Edge], ...]:
        """What layers call, and what that leads to; each place once, for the first layer that it is found from.

        Who asks wants to know what becomes of the flags: of an engine without any, no call. What layers do not call
        themselves is left out where it leads to no reduction, and to no function that takes a flag.
        """
        found: dict[tuple[str, Span, Ref], tuple[Layer, Frame, Edge]] = {}
        for layer in self.layers if self.index.profile.flags else ():
            for start, edge in self._paths(layer, self.onward, self._leads_on):
                found.setdefault((edge.frame.path, edge.call.span, edge.target.function), (layer, start, edge))
        return tuple(found.values())

    @cached_property
    def _routes(self) -> dict[tuple[str, Span], list[tuple[Layer, tuple[Edge, ...]]]]:
        found: dict[tuple[str, Span], list[tuple[Layer, tuple[Edge, ...]]]] = {}
        for layer in self.layers:
            for frame in layer.frames:
                for edge in self.edges(frame):
                    if edge.target.instance == frame.instance:
                        continue  # the layer's own functions are starts themselves
                    for one in self.sums(edge):
                        place = (one.site.path, one.site.raw.span)
                        found.setdefault(place, []).append((layer, one.route))
        return found

    def routes_to(self, site: Site) -> list[tuple[Layer, tuple[Edge, ...]]]:
        """The calls from each layer down to a reduction."""
        return self._routes.get((site.path, site.raw.span), [])

    @remembered
    def _calls_in(self, function: Ref) -> dict[Span, dict[Ref, None]]:
        """Each call in a function that some layer brings about -> what it may run, whichever layer it runs in."""
        found: dict[Span, dict[Ref, None]] = {}
        for layer in self.layers:
            for _, edge in self._paths(
                layer, self.edges, lambda frame: self._leads_to(frame, function, function.__eq__)
            ):
                if edge.frame.function == function:
                    found.setdefault(edge.call.span, {})[edge.target.function] = None
        return found

    def reached(self, edge: Edge) -> tuple[Ref, ...]:
        """Every function that the call of an edge may run, whichever layer it runs in."""
        others = self._calls_in(edge.frame.function).get(edge.call.span, {})
        return tuple({edge.target.function: None, **others})

    def all_known(self, edge: Edge) -> bool:
        """Whether everything that the callee's attribute is ever set to is a class that was looked at."""
        if edge.built is None or edge.frame.instance is None:
            return edge.built is None
        owner, name = edge.frame.instance.owner, edge.built.attribute
        classes = {built.owner for built in self.built(owner).get(name, ())}
        return all(
            any(self.index.resolve(path, callee) in classes for callee in fact.callees)
            for path, fact in self.index.attributes(owner, name)
        )

    def asked(self, frame: Frame, call: Call, flag: str) -> bool:
        """Whether a flag is worth anything at a call: the layer asked for it, or a caller handed it down."""
        if flag in self._params(frame.function):
            value = dict(frame.values).get(flag)
            return value is not None and flag in atom_set(value)
        return flag in dict(call.known) or self.renamed(frame, flag) is not None

    def renamed(self, frame: Frame, flag: str) -> str | None:
        """The parameter of another name that a function was handed a flag for."""
        known = {flag.name for flag in self.index.profile.flags}
        names = (name for name, value in frame.values if name not in known and flag in atom_set(value))
        return next(names, None) if flag not in self._params(frame.function) else None

    def marks(self, layer: Layer) -> tuple[Formula, ...]:
        """When the layer says of a tensor that it still owes a sum: here, or in a function that it calls for that."""
        found: list[Formula] = []
        for frame in layer.frames:
            helpers = [edge.target for edge in self.edges(frame) if edge.built is None]
            for one in (frame, *helpers):
                conduct = self.conduct(one.function)
                marks = conduct.marks if conduct is not None else ()
                for mark in marks:
                    if mark.value is not False:
                        reached = without_topology(mark.condition, self.index.profile)
                        found.append(conj((one.holds, self.told(one, reached))))
        return tuple(found)

    def guard(self, frame: Frame, site: Site) -> Formula:
        """A site's guard in the layer's terms."""
        return self._with_helper(frame, site.guard)

    def _with_helper(self, frame: Frame, condition: Formula) -> Formula:
        """A condition in the layer's terms: the helper and other predicates that read flags are opened."""
        flags = {flag.name for flag in self.index.profile.flags}
        context = dict(frame.context)
        helper = self.policy.helper

        def published(formula: Formula) -> Formula:
            return substitute(formula, lambda atom: context.get(atom, FALSE) if atom in flags else None)

        def value(atom: str) -> Formula | None:
            if "(" not in atom:
                return None
            called = self.policy.called(atom)
            if called is not None and helper is not None:
                own = frozenset(flag for _, flag in helper.flags) | dict(frame.values).keys()
                # a flag that the helper takes was given here; one that it reads elsewhere was published
                handed = substitute(called, lambda a: self.told(frame, Atom(a)) if a in own else None)
                return self._opened(handed, flags - own, published)
            return self._opened(Atom(atom), flags, published)

        return substitute(condition, lambda atom: value(atom) if "(" in atom else self.told(frame, Atom(atom)))

    def _opened(self, formula: Formula, flags: set[str], published: Callable[[Formula], Formula]) -> Formula:
        """Predicates that read published flags replaced by what they mean."""

        def value(atom: str) -> Formula | None:
            if atom in flags:
                return published(Atom(atom))
            if "(" not in atom:
                return None
            body = self.policy.expanded(Atom(atom))
            return published(body) if atom_set(body) & flags else None

        return substitute(formula, value)


def _place(callee: Callee, caller: Frame) -> Frame:
    """A function that another one may run, whatever its names are worth."""
    owner = caller.instance.owner if caller.instance is not None else None
    acts_for = owner if callee.built is None or owner is None else callee.built.owner
    return _bare(callee.function, acts_for if callee.itself is not None else None, callee.itself or "self")


def _bare(function: Ref, owner: Ref | None, itself: str) -> Frame:
    """A function of a class, whatever its names are worth."""
    return Frame(function, Instance(owner) if owner is not None else None, itself)
