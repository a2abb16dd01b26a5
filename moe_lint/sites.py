"""Raw sites x policy -> judged sites: is it post-experts, who decides, how does its guard relate to the helper."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.dataflow import Dataflow, Where
from moe_lint.facts import GuardPart, RawSite, is_collective_name
from moe_lint.formula import (
    FALSE,
    TRUE,
    Atom,
    Comparison,
    Formula,
    Relation,
    TooManyAtoms,
    assign,
    atom_set,
    conj,
    implies,
    nests_too_deeply,
    replace_atoms,
    satisfiable,
)
from moe_lint.helper import is_skip_predicate
from moe_lint.index import ProjectIndex, Ref
from moe_lint.local_predicates import opened
from moe_lint.model import Axis, Route, SkipReason
from moe_lint.policy import Policy, bind
from moe_lint.profile import Profile, matches
from moe_lint.reaching import handed_flags, reaching


class Site(Struct, frozen=True):
    """One all-reduce-like call, judged. ``guard`` has its topology atoms set to true."""

    path: str
    raw: RawSite
    post_experts: bool
    guard: Formula
    route: Route
    absorber: bool | None
    #: flag -> its spelling at the site
    flags: tuple[tuple[str, str], ...]
    comparison: Comparison | None = None
    missing: tuple[str, ...] = ()
    problem: SkipReason | None = None

    @property
    def relation(self) -> Relation | None:
        return self.comparison.relation if self.comparison is not None else None

    @property
    def axis(self) -> Axis:
        return self.raw.axis

    @property
    def known_flags(self) -> tuple[str, ...]:
        return tuple(flag for flag, _ in self.flags)

    @property
    def method(self) -> str:
        return self.raw.function.rsplit(".", 1)[-1]


def without_topology(formula: Formula, profile: Profile) -> Formula:
    """The formula in the states in which every group has more than one rank: "more than one rank" is no skip reason.

    Where a group must have a single rank (the `else` of `if self.ep_size > 1:`), it has.
    """
    for atom in sorted(atom_set(formula)):
        text, _, bound = atom.rpartition(" > ")
        if text and bound.isdigit() and profile.is_size(text):
            kept = assign(formula, atom, TRUE)
            formula = kept if kept != FALSE else assign(formula, atom, FALSE)
    return formula


def is_skip_atom(atom: str, profile: Profile) -> bool:
    """Whether an atom is a skip reason by the profile: a layer-context flag or a skip predicate."""
    return atom in {flag.name for flag in profile.flags} or is_skip_predicate(atom, profile)


def is_ownership(atom: str, profile: Profile) -> bool:
    """Whether an atom (`self.reduce_results`) asks who is to reduce: the caller's choice, no skip reason."""
    return matches(atom.rsplit(".", 1)[-1], profile.ownership)


class FoundSite(Struct, frozen=True):
    """A site before the policy is known."""

    path: str
    raw: RawSite
    post_experts: bool
    guard: Formula
    absorber: bool | None
    #: flag -> the name under which the method takes it, where that is another
    handed: tuple[tuple[str, str], ...] = ()


def owner_of(site: Site | FoundSite) -> Ref:
    """The class around a site, or the function when it is in none."""
    return Ref(site.path, site.raw.class_name or site.raw.function)


def find_site(path: str, raw: RawSite, index: ProjectIndex, dataflow: Dataflow) -> FoundSite:
    """Everything about a site that does not depend on the helper. Raises ``RecursionError`` for too deep a guard."""
    raw = _over_the_axis_inside(opened(raw, path, index), path, index)
    reached = conj(part.formula for part in raw.guard)
    if nests_too_deeply(reached):
        raise RecursionError
    where = Where(path, raw.class_name, raw.function.removesuffix(".<lambda>"), reached)
    inside = raw.function.removesuffix(".<lambda>").rsplit(".", 1)[-1]
    wrappers = index.profile.wrappers
    post_experts = raw.collective in wrappers or inside in wrappers or serves_wrapper(path, raw, index)
    if not post_experts and not is_collective_name(inside):  # the body of a collective is not a site of its own
        post_experts = dataflow.is_post_experts(raw.origins, where)
    absorber: bool | None = None
    handed: tuple[tuple[str, str], ...] = ()
    if post_experts:
        owner = Ref(path, raw.class_name if raw.class_name is not None else raw.function)
        absorber = index.has_absorber(owner)
        raw, handed = _in_flags(raw, path, index)
        reached = conj(part.formula for part in raw.guard)
    return FoundSite(path, raw, post_experts, without_topology(reached, index.profile), absorber, handed)


def _over_the_axis_inside(raw: RawSite, path: str, index: ProjectIndex) -> RawSite:
    """A call of a method that only sums (`self._all_reduce(x)`) is a sum over the axis that is summed there."""
    if raw.axis != "other" or raw.class_name is None or raw.callee.rpartition(".")[0] != "self":
        return raw
    method = index.method(Ref(path, raw.class_name), raw.collective)
    body = index.function(method) if method is not None else None
    inside = body.sites if body is not None else ()
    return replace(raw, axis=inside[0].axis) if len(inside) == 1 and not inside[0].guard else raw


def _in_flags(raw: RawSite, path: str, index: ProjectIndex) -> tuple[RawSite, tuple[tuple[str, str], ...]]:
    """The site with each parameter that is a flag under another name called by the flag's."""
    facts = index.facts(path)
    if facts is None or raw.function not in facts.functions:
        return raw, ()
    params = set(facts.header(raw.function)[1]) - index.profile.flag_names.keys() - {"self"}
    if not any(_asks_one(name, params) for part in raw.guard for name in atom_set(part.formula)):
        return raw, ()
    handed = handed_flags(index, Ref(path, raw.function), raw.class_name)
    values = {parameter: Atom(flag) for flag, parameter in handed.items()}
    if not values:
        return raw, ()

    def part(old: GuardPart) -> GuardPart:
        operands = tuple((text, bind(formula, values, index.profile)) for text, formula in old.operands)
        return replace(old, formula=bind(old.formula, values, index.profile), operands=operands)

    return replace(raw, guard=tuple(map(part, raw.guard))), tuple(sorted(handed.items()))


def _asks_one(atom: str, params: set[str]) -> bool:
    """Whether a condition is one of some parameters, or hands one to a function as it is."""
    return atom in params or ("(" in atom and not params.isdisjoint(re.findall(r"(?<![\w.])\w+(?![\w.\[(])", atom)))


def serves_wrapper(path: str, raw: RawSite, index: ProjectIndex) -> bool:
    """Whether a site stands in a function that a wrapper of its file calls, told from the text."""
    facts = index.facts(path)
    if facts is None or raw.class_name is not None:
        return False
    call = rf"(?<![\w.]){re.escape(raw.function)}\("
    return any(
        path in index.holding(f"def {name}(") and name in facts.functions and facts.matches(name, call)
        for name in index.profile.wrappers
        if name != raw.function
    )


def _is_handed_its_condition(found: FoundSite, index: ProjectIndex) -> bool:
    """Whether a wrapper decides about a site in a function that serves it, by a parameter."""
    facts, function = index.facts(found.path), found.raw.function
    params = facts.header(function)[1] if facts is not None and function in facts.functions else ()
    return bool(set(params) & atom_set(found.guard)) and serves_wrapper(found.path, found.raw, index)


def skip_atoms_used(sites: Iterable[FoundSite], profile: Profile) -> list[tuple[Axis, str]]:
    """(axis, atom) of every skip atom that the guards of post-experts sites name; (axis, "") where none is named."""
    used: list[tuple[Axis, str]] = []
    for site in sites:
        if site.post_experts and site.raw.axis != "other":
            names = [a for a in sorted(atom_set(site.guard)) if is_skip_atom(a, profile)]
            used += [(site.raw.axis, name) for name in names or [""]]
    return used


def judge_site(found: FoundSite, policy: Policy) -> Site:
    """The verdict on one site."""
    found = replace(found, guard=policy.in_helper_terms(found.guard, owner_of(found)))
    raw, profile = found.raw, policy.profile
    flags = _flags_in_scope(found, policy)
    route = _route(found, policy)
    comparison: Comparison | None = None
    missing: tuple[str, ...] = ()
    problem: SkipReason | None = None
    settled = (Route.WRAPPER, Route.DEFERRED, Route.KEPT)
    judged = found.post_experts and policy.helper is not None and route not in settled
    if judged and raw.axis == "other":
        problem = SkipReason.UNKNOWN_AXIS
    elif judged:
        guard = without_ownership(found.guard, profile)
        try:
            # beside the helper, a further reason is redundant; in a guard by hand it is part of the decision
            named = (
                {name for name in atom_set(guard) if is_skip_atom(name, profile)} if route is Route.INLINE else set()
            )
            comparison = policy.judge(guard, raw.axis, [flag for flag, _ in flags], frozenset(named))
            scope = [flag for flag, _ in flags] if route is Route.HELPER else None
            missing = policy.missing(guard, raw.axis, scope)
            if comparison.over is not None:
                comparison, missing = _as_called(found, policy, (comparison, missing), flags, scope, frozenset(named))
        except TooManyAtoms:
            problem = SkipReason.TOO_MANY_ATOMS
        if route is Route.HELPER and missing and not policy.helper_calls(found.guard):
            route = Route.INLINE  # it asks one half of the helper, and forgets the other
        unguarded = route is Route.NONE and comparison is not None and comparison.relation is not Relation.EQUAL
        if unguarded and found.absorber is None:
            problem = SkipReason.UNKNOWN_ABSORBER
    return Site(
        found.path,
        raw,
        found.post_experts,
        found.guard,
        route,
        found.absorber,
        flags,
        comparison,
        missing,
        problem,
    )


def asked_before(site: Site | FoundSite, policy: Policy) -> Formula:
    """What the callers of the method around a site have made sure of, as its guard would say it."""
    raw = site.raw
    above = reaching(policy.index, Ref(site.path, raw.function.removesuffix(".<lambda>")), raw.class_name)
    return above if above == TRUE else policy.in_helper_terms(without_topology(above, policy.profile), owner_of(site))


def _as_called(
    found: FoundSite,
    policy: Policy,
    verdict: tuple[Comparison, tuple[str, ...]],
    flags: tuple[tuple[str, str], ...],
    scope: list[str] | None,
    named: frozenset[str],
) -> tuple[Comparison, tuple[str, ...]]:
    """The comparison, and what is missing, in the states in which callers of the method call it.

    Only a double reduction is taken back: a state in which the method is not called may have a sibling that reduces.
    """
    raw, (alone, missing) = found.raw, verdict
    above = asked_before(found, policy)
    if above == TRUE:
        return alone, missing
    guard = without_ownership(conj((found.guard, above)), policy.profile)
    try:
        called = policy.judge(guard, raw.axis, [flag for flag, _ in flags], named)
        still_missing = policy.missing(guard, raw.axis, scope)
    except TooManyAtoms:
        return alone, missing
    if called.over is not None:
        return replace(alone, over=called.over), still_missing
    relation = Relation.EQUAL if alone.under is None else Relation.STRONGER
    return Comparison(relation, None, alone.under), ()


def _flags_in_scope(found: FoundSite, policy: Policy) -> tuple[tuple[str, str], ...]:
    """Flags that the site could hand to the helper.

    All of them where the helper reads a published context, or is handed arguments that are not written out.

    A flag that was passed counts as the published one of its name: nothing in the block tells them apart, and to take
    them for two would make every guard on one differ. What rests on that is not proved: `held_by_name` tells which
    flags it is, a fix keeps them (ADR 3), and MOE001 does not call such a guard the same without saying so.
    """
    profile = policy.profile
    scope = {**_attributes_asked(found.raw, profile), **{profile.flag_names[name]: name for name in found.raw.flags}}
    scope |= dict(found.handed)
    helper = policy.helper
    if helper is not None and (not helper.flags or policy.hides_flags(found.guard)):
        return tuple((flag.name, scope.get(flag.name, flag.name)) for flag in profile.flags)
    return tuple(sorted(scope.items()))


def _attributes_asked(raw: RawSite, profile: Profile) -> dict[str, str]:
    """Flag -> how the guard asks for it as a part of something that the site knows (`context.use_reduce_scatter`)."""
    texts = [text for part in raw.guard for text, _ in part.operands]
    if not any(f".{spelling}" in text for text in texts for spelling in profile.flag_names):
        return {}
    asked = re.compile(rf"(?<![\w.)])((?:\w+\.)+({'|'.join(map(re.escape, profile.flag_names))}))\b(?!\()")
    return {profile.flag_names[name]: whole for text in texts for whole, name in asked.findall(text)}


def _route(found: FoundSite, policy: Policy) -> Route:
    profile, guard = policy.profile, found.guard
    if found.raw.collective in profile.wrappers:
        return Route.WRAPPER
    names = atom_set(guard)
    if _requires(guard, profile.markers):
        return Route.DEFERRED
    if policy.helper_calls(guard):
        return Route.HELPER
    if found.post_experts and _told_to_leave(found, policy.index):
        return Route.KEPT
    if policy.helper is not None and names & policy.delegates:
        return Route.HELPER if not any(is_skip_atom(n, profile) for n in names - policy.delegates) else Route.INLINE
    reasons = {reason.text for axis in ("TP", "EP") for reason in policy.reasons(axis)} if policy.helper else set()
    if any(is_skip_atom(name, profile) or name in reasons for name in names):
        return Route.INLINE
    owned = [name for name in names if is_ownership(name, profile)]
    if _may_ask_itself(found, policy):
        # a caller may take a sum over there; whether one is left at all, nobody tells the class that knows
        owned = [name for name in owned if name.isidentifier() or _keeps_the_answer(name, found, policy)]
    if owned or _is_handed_its_condition(found, policy.index):
        return Route.OWNED
    return Route.NONE


def _may_ask_itself(found: FoundSite, policy: Policy) -> bool:
    """Whether a site stands in the class whose method the helper is."""
    helper = policy.helper
    return helper is not None and helper.owner is not None and owner_of(found) == Ref(helper.path, helper.owner)


def _keeps_the_answer(atom: str, found: FoundSite, policy: Policy) -> bool:
    """Whether an attribute is set to what the helper of its class says: told from the text."""
    facts, helper = policy.index.facts(found.path), policy.helper
    assigned = rf"\b{re.escape(atom.rpartition('.')[2])}\b[^=\n]*=[^=]*\b{re.escape(helper.name if helper else '')}\b"
    return facts is None or facts.matches(found.raw.class_name or "", assigned)


def _told_to_leave(found: FoundSite, index: ProjectIndex) -> bool:
    """Whether the function told a block that it calls to leave this sum, in every state in which it sums.

    It must have worked that out by itself: the answer of a communicator is a promise that the communicator keeps.
    """
    raw, spellings, facts = found.raw, index.profile.flag_names, index.facts(found.path)
    if facts is None or raw.function not in facts.functions or not raw.flags:
        return False
    conduct = facts.conduct(raw.function)
    handed = {
        spellings[name]
        for call in conduct.calls
        if call.span < raw.span
        for passed in (*call.arguments, *call.published)
        if (name := passed.keyword) is not None and name in spellings
    }
    decided = {flag: holds for flag, holds in conduct.decided.items() if flag in handed}
    guard = replace_atoms(conj(part.formula for part in raw.guard), decided)
    return any(implies(guard, holds) for holds in decided.values())


def _requires(guard: Formula, words: Iterable[str]) -> bool:
    """Whether the guard implies some atom that holds one of the words."""
    return any(implies(guard, Atom(name)) for name in atom_set(guard) if any(word in name for word in words))


def without_ownership(guard: Formula, profile: Profile, but: Collection[str] = ()) -> Formula:
    """The guard for a caller that leaves the reduction to this block; ``but`` are names that are no choice of it."""
    names = atom_set(guard)
    for name in sorted(names):  # told nothing, the block asks itself: `if summed is None: summed = self.is_summed`
        guard = assign(guard, f"{name} is None", TRUE) if f"{name} is None" in names else guard
    for name in sorted(atom_set(guard)):
        if name not in but and is_ownership(name, profile):
            kept = assign(guard, name, TRUE)
            guard = kept if satisfiable(kept) else assign(guard, name, FALSE)
    return guard


def deciding_part(site: Site, profile: Profile) -> GuardPart | None:
    """The innermost condition of a site that names more than topology, else the innermost condition."""
    for part in reversed(site.raw.guard):
        if part.kind != "early-exit" and without_topology(part.formula, profile) != TRUE:
            return part
    for part in reversed(site.raw.guard):
        if part.kind != "early-exit":
            return part
    return None
