"""A2a backends and the blocks: which reductions run with which of them."""

from __future__ import annotations

from msgspec import Struct

from moe_lint.formula import TRUE, Atom, Formula, TooManyAtoms, atom_set, conj, disj, negate, satisfiable
from moe_lint.index import Ref
from moe_lint.model import Axis, Route
from moe_lint.policy import Policy
from moe_lint.remembered import remembered
from moe_lint.rules._plumbing import constants
from moe_lint.rules.base import Context
from moe_lint.sites import Site, is_ownership, owner_of, serves_wrapper


class Group(Struct, frozen=True):
    """The reductions after the experts of a class, and its methods that make them or call a function that does."""

    owner: Ref
    sites: tuple[Site, ...]
    methods: frozenset[str]


@remembered
def reducing_classes(context: Context) -> list[Group]:
    """The classes with reductions after experts, those in functions that their methods call included."""
    found = {
        (group[0].path, group[0].raw.class_name): ([*group], {site.method for site in group})
        for group in groups(context)
    }
    for site in context.sites:
        if (
            site.raw.class_name is None
            and site.post_experts
            and site.comparison is not None
            and not in_wrapper(site, context)
        ):
            for path, call in context.index.calls_of(Ref(site.path, site.raw.function)):
                if call.class_name is not None and not _is_taken_over(Ref(path, call.class_name), context):
                    sites, methods = found.setdefault((path, call.class_name), ([], set()))
                    sites += [site] if site not in sites else []
                    methods.add(call.function.rsplit(".", 1)[-1])
    return [
        Group(Ref(path, name), tuple(sites), frozenset(methods))
        for (path, name), (sites, methods) in found.items()
        if name is not None
    ]


def in_wrapper(site: Site, context: Context) -> bool:
    """Whether the function around a site is a wrapper, or one that wrappers call: each call of these is a site."""
    return site.raw.function in context.policy.profile.wrappers or serves_wrapper(site.path, site.raw, context.index)


@remembered
def groups(context: Context) -> list[list[Site]]:
    """The reductions after experts, by hand or by a wrapper, class by class."""
    found: dict[tuple[str, str], list[Site]] = {}
    for site in context.sites:
        judged = site.comparison is not None or site.route is Route.WRAPPER
        if site.post_experts and judged and site.raw.class_name is not None and not _left_to_others(site, context):
            found.setdefault((site.path, site.raw.class_name), []).append(site)
    return list(found.values())


def _left_to_others(site: Site, context: Context) -> bool:
    """Whether every layer that uses the block has taken its sum over: built it so, or hands it a flag that is true."""
    owned = any(is_ownership(name, context.policy.profile) for name in atom_set(site.guard))
    if owned and not context.callers.routes_to(site):
        return True
    return _is_taken_over(owner_of(site), context)


def _is_taken_over(block: Ref, context: Context) -> bool:
    users = context.index.users(block)
    return bool(users) and all(_hands_constant(user, context) for user in sorted(users))


def _hands_constant(user: Ref, context: Context) -> bool:
    facts = context.index.facts(user.path)
    methods = facts.functions_in(user.name) if facts is not None and user.name in facts.classes else ()
    return any(True for name in methods for _ in constants(Ref(user.path, name), context))


def question(member: str, policy: Policy) -> Atom:
    return Atom(f"{policy.profile.backend_getter}.is_{member}()")


def runs_with(member: str, site: Site, policy: Policy, above: Formula = TRUE) -> bool:
    """Whether a reduction may run with a backend. ``above`` is what the callers of its method have made sure of."""
    axes: tuple[Axis, ...] = ("TP", "EP")
    wrapped = disj(negate(policy.skips(axis)) for axis in axes) if policy.helper is not None else TRUE
    guard = conj((site.guard, wrapped)) if site.route is Route.WRAPPER else policy.with_helper(site.guard)
    holds = policy.opened(conj((guard, policy.with_helper(above), question(member, policy))))
    try:
        return satisfiable(conj((holds, policy.feasible(atom_set(holds)))))
    except TooManyAtoms:
        return True
