"""Two methods of a class that sum one after the other: what one returns, `forward` hands to the other."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from msgspec import Struct

from moe_lint.callers import Edge, Frame, Instance
from moe_lint.dataflow import argument_origins, elements_at
from moe_lint.facts import CallFact, CallResult, Origin, Origins, Param, Summed
from moe_lint.formula import FALSE, TRUE, Formula, TooManyAtoms, atom_set, conj, forall, replace_atoms
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.rules.base import Context
from moe_lint.sites import Site, without_ownership
from moe_lint.source import parse_part


def summed_in_turn(context: Context) -> Iterator[tuple[Site, Site, Configuration]]:
    """Every sum in a method of what another method has summed before: (again, before, when)."""
    sites: dict[Ref, list[Site]] = {}
    for site in context.sites:
        sites.setdefault(Ref(site.path, site.raw.function), []).append(site)
    owners = {Ref(s.path, s.raw.class_name) for s in context.sites if s.post_experts and s.raw.class_name is not None}
    for owner in sorted(owners):
        family = context.index.mro(owner)
        if sum(Ref(one.path, one.name.rpartition(".")[0]) in family for one in sites) < 2:
            continue
        entry = context.index.method(owner, "forward")
        edges = context.callers.edges(Frame(entry, Instance(owner))) if entry is not None else ()
        own = [edge for edge in edges if edge.target.instance == Instance(owner) and edge.target.function in sites]
        for earlier, later in ((one, other) for one in own for other in own if one.call.span < other.call.span):
            for again in (site for site in sites[later.target.function] if site.post_experts):
                for before in sites[earlier.target.function]:
                    shown = _Pair(owner, earlier, before, later, again, context).shown()
                    if shown is not None:
                        yield again, before, shown


class _Pair(Struct, frozen=True):
    """A sum and a later one, each with the call in `forward` that leads to it."""

    owner: Ref
    earlier: Edge
    before: Site
    later: Edge
    again: Site
    context: Context

    def shown(self) -> Configuration | None:
        """A configuration in which both run on the same tensor, whatever else the second asks than the first does."""
        if not self._is_handed_on() or not self.context.ways.same_ranks(self.again, self.before):
            return None
        before, again = self._condition(self.earlier, self.before), self._condition(self.later, self.again)
        if before is None or again is None:
            return None
        try:
            asked = atom_set(before)
            if self._results is None or self._results & (atom_set(again) - asked):
                return None  # beside the sum, the first has told whether it ran
            runs = self._runs_again(before, again)
            more = sorted(atom_set(runs) - asked)
            unknown = [name for name in more if not self.context.ways.tells(name, self.again.path)]
            both = conj((before, forall(runs, unknown)))
            return self.context.policy.configuration(
                self.context.policy.with_helper(both), self.before.axis, self.before.raw.collective
            )
        except TooManyAtoms:
            return None

    def _condition(self, edge: Edge, site: Site) -> Formula | None:
        """When a sum runs in the function that `forward` calls, in the terms of `forward`."""
        found = (one for one in self.context.callers.sums(edge) if one.site == site and len(one.route) == 1)
        return next((one.condition for one in found), None)

    def _runs_again(self, before: Formula, again: Formula) -> Formula:
        """When the second sum runs; in the class that knows whether one is left, where its caller leaves that to it."""
        policy, params = self.context.policy, self._params(self.later.target.function)
        bound = {b.parameter for b in self.later.bound}
        runs = replace_atoms(again, {f"{name} is None": FALSE if name in bound else TRUE for name in params})
        home = Ref(policy.helper.path, policy.helper.owner or "") if policy.helper is not None else None
        if home not in self.context.index.mro(self.owner):
            return runs
        fixed = atom_set(before) | {name for name in params if name not in bound}
        return without_ownership(runs, policy.profile, fixed)

    # --- what is handed on

    @property
    def _results(self) -> frozenset[str] | None:
        """The names that `forward` gives to what the first method returns; None where its text cannot be read alone."""
        function = self.earlier.frame.function
        facts = self.context.index.facts(function.path)
        text = facts.function_text(function.name) if facts is not None else ""
        method = self.earlier.call.callee.rpartition(".")[2]
        tree = parse_part(f"if True:\n{text}")
        if tree is None:
            return None
        return frozenset(
            name.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and f".{method}(" in ast.unparse(node.value)
            for target in node.targets
            for name in ast.walk(target)
            if isinstance(name, ast.Name)
        )

    def _is_handed_on(self) -> bool:
        """Whether the second sums what it is handed, and that comes from what the first sum returned."""
        call = self._call(self.later.call.callee)
        params = self._params(self.later.target.function)
        handed = [o.name for o in self.again.raw.origins if isinstance(o, Param) and o.name in params]
        return call is not None and any(self._from_first(argument_origins(call, params, name)) for name in handed)

    def _from_first(self, origins: Origins) -> bool:
        return any(isinstance(origin, CallResult) and self._is_from_first(origin) for origin in origins)

    def _is_from_first(self, result: CallResult) -> bool:
        if result.callee == self.earlier.call.callee:
            return any(
                isinstance(inner, Summed) and inner.span == self.before.raw.span
                for inner in self._returned(self.earlier.target.function, result.element)
            )
        return self._from_first(self._passed_on(result))

    def _passed_on(self, result: CallResult) -> Origins:
        """What a call makes its result of: of a known function, the arguments that it returns something of."""
        targets = self.context.index.targets(self.earlier.frame.path, self.owner.name, result.callee)
        call = self._call(result.callee)
        if len(targets) != 1 or call is None:
            return result.inputs
        function = targets[0].function
        params = self._params(function)
        names = {o.name for o in _deep(self._returned(function, result.element)) if isinstance(o, Param)}
        found = [argument_origins(call, params, name) for name in names if name in params]
        return frozenset().union(*found)

    def _call(self, callee: str) -> CallFact | None:
        """The one call of that name in `forward`."""
        body = self.context.index.function(self.earlier.frame.function)
        calls = [call for call in body.calls if call.callee == callee] if body is not None else []
        return calls[0] if len(calls) == 1 else None

    def _params(self, function: Ref) -> list[str]:
        facts = self.context.index.facts(function.path)
        return [name for name in facts.header(function.name)[1] if name != "self"] if facts is not None else []

    def _returned(self, function: Ref, element: int | None) -> Origins:
        facts = self.context.index.facts(function.path)
        exits = facts.paths(function.name).exits if facts is not None else ()
        return frozenset(origin for out in exits for one in elements_at(out.elements, element) for origin in one)


def _deep(origins: Origins) -> Iterator[Origin]:
    for origin in origins:
        yield origin
        if isinstance(origin, CallResult):
            yield from _deep(origin.inputs)
