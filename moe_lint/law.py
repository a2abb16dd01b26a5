"""The law at a site: block and absorber together sum exactly once, in every feasible launch configuration.

A site's guard and the absorbers' conditions are boolean functions of the same conditions. Wherever both sum, the output
is doubled; wherever neither does, it is lost. Each is searched for among the launch configurations of the engine, so
that a verdict comes with a command line that shows it. What cannot be decided is said to be undecided.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.absorbers import absorbers_of
from moe_lint.builders import builders
from moe_lint.callers import Callers
from moe_lint.formula import (
    FALSE,
    TRUE,
    Atom,
    Formula,
    State,
    TooManyAtoms,
    assign,
    atom_set,
    conj,
    disj,
    exists,
    negate,
)
from moe_lint.helper import find_definition
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Route, SkipReason, Verdict
from moe_lint.policy import Policy, Reason
from moe_lint.sites import Site, asked_before, is_ownership, is_skip_atom, owner_of

_BY_CONTRACT = "the layer boundary around this block takes sums over by contract, not by a condition"


class Example(Struct, frozen=True):
    """A state in which a site breaks the law, and a launch configuration in which it occurs (None: none is known)."""

    state: State
    configuration: Configuration | None


def doubled(site: Site, policy: Policy) -> Example | None:
    """Where the site reduces though the helper skips: the reason with the cheapest configuration; None if nowhere.

    Flags that no layer around the site can set come last: with them nothing is wrong yet.
    """
    fallback = site.comparison.over if site.comparison is not None else None
    if fallback is None:
        return None
    block = owner_of(site)
    reduces = conj((_reduces(site, policy), absorbers_of(policy).kept(block)))
    live = _live(site, policy)
    found: list[tuple[tuple[bool, int, int], Example]] = []
    for reason in policy.reasons(site.axis):
        if reason.text in site.missing and isinstance(reason.formula, Atom):
            holds = conj((reduces, reason.formula))
            state = State(((reason.formula.name, True),))
            shown = policy.configuration(holds, site.axis, site.raw.collective)
            if shown is not None:
                found.append(((reason not in live, *_plainness(shown)), Example(state, shown)))
    if found:
        return min(found, key=lambda item: item[0])[1]
    return Example(fallback, policy.configuration(fallback.formula, site.axis, site.raw.collective))


def lost(site: Site, policy: Policy) -> Example | None:
    """Where the site does not reduce though the helper would; None if nowhere.

    With an a2a backend whose combine may have summed already nothing is lost for certain: no configuration is told.
    """
    state = site.comparison.under if site.comparison is not None else None
    if state is None:
        return None
    reduces, skips = _reduces(site, policy), disj(reason.formula for reason in policy.reasons(site.axis))
    neither = conj((negate(reduces), negate(skips), no_backend((reduces, skips), policy)))
    return Example(state, policy.configuration(neither, site.axis, site.raw.collective))


def verdicts(sites: Iterable[Site], policy: Policy) -> dict[Site, Verdict]:
    """The verdict on each reduction after the experts. A wrapper's call is as good as the sums inside the wrapper."""
    sites = tuple(sites)
    callers = Callers(policy.index, policy, sites)
    sums = [site for site in sites if site.post_experts]
    found = {site: _by_builders(site, callers) or _alone_or_jointly(site, callers) for site in sums}
    for site in sums:
        if _is_inside_wrapper(site, policy) and found[site].reason == _BY_CONTRACT:
            calls = [s for s in sums if s.raw.collective == site.raw.function]
            found[site] = _as_called(found[s] for s in calls if not absorbers_of(policy).is_home(s.path))
    return found


def _alone_or_jointly(site: Site, callers: Callers) -> Verdict:
    """The verdict on one site: a wrapper's call by all sums inside, a sum inside a wrapper beside its companions."""
    policy = callers.policy
    if site.route is Route.WRAPPER and not absorbers_of(policy).is_home(site.path):
        inside = _inside(find_definition(policy.index, site.raw.collective), site.absorber, callers)
        return _worst([_verdict(one, policy) for one in inside.values()], site.raw.collective)
    if _is_inside_wrapper(site, policy) and site.raw.collective in policy.profile.collectives:
        inside = _inside(Ref(site.path, site.raw.function), site.absorber, callers)
        launch = policy.profile.launch
        over_all = launch.group_of(site.raw.collective, site.axis) == launch.group_of("", "TP")
        mine = [one for axis, one in inside.items() if over_all or axis == site.axis]
        if len(inside) > 1 and mine:
            return min((_verdict(one, policy) for one in mine), key=_badness)
    return _verdict(site, policy)


def _is_inside_wrapper(site: Site, policy: Policy) -> bool:
    return site.raw.class_name is None and site.raw.function in policy.profile.wrappers


def _by_builders(site: Site, callers: Callers) -> Verdict | None:
    """The verdict where the layers tell the block by an argument who sums, and their boundary keeps a contract."""
    if not site.absorber or _asked(site, callers.policy):
        return None
    found = builders(site, callers)
    if not found:
        return None
    unclear = [why for one in found if (why := one.open) is not None]
    if unclear:
        return Verdict("undecided", None, unclear[0])
    if any(one.sums for one in found):
        alone = _alone_or_jointly(replace(site, absorber=False), callers)
        if alone.verdict != "once":
            return alone
    left = [f"`{one.name}`" for one in found if not one.sums]
    summed = [f"`{one.name}`" for one in found if one.sums]
    told = [f"{', '.join(left)} leave{'s' if len(left) == 1 else ''} this sum to the layer boundary"] if left else []
    told += (
        [f"{', '.join(summed)} without a boundary let{'s' if len(summed) == 1 else ''} the block sum"] if summed else []
    )
    return Verdict("once", None, "; ".join(told))


def _as_called(calls: Iterable[Verdict]) -> Verdict:
    """The verdict on a sum inside a wrapper, by those on the wrapper's calls."""
    found = list(calls)
    if found and all(verdict.verdict == "once" for verdict in found):
        return Verdict("once", None, "every block that calls this wrapper is summed once")
    return Verdict("undecided", None, "a wrapper: each block that calls it answers for itself")


def _inside(definition: Ref | None, absorber: bool | None, callers: Callers) -> dict[str, Site]:
    """Axis -> the sums that a wrapper reaches, through functions of its own, too, as one that stands at its call.

    A sum over all ranks that takes the place of both counts for both.
    """
    policy = callers.policy
    launch = policy.profile.launch
    reached = callers.sums_of(definition) if definition is not None else ()
    known = [one for one in reached if one.site.raw.collective in policy.profile.collectives]
    whole = launch.group_of("", "TP")
    over_all = [one for one in known if launch.group_of(one.site.raw.collective, one.site.axis) == whole]
    found: dict[str, Site] = {}
    for axis in ("EP", "TP"):
        own = [one for one in known if one.site.axis == axis]
        if own:
            narrow = next((one for one in own if one not in over_all), own[0])
            condition = disj(one.condition for one in dict.fromkeys((*own, *over_all)))
            found[axis] = replace(narrow.site, guard=condition, route=Route.HELPER, absorber=absorber)
    return found


def _badness(verdict: Verdict) -> int:
    return ("lost", "doubled", "undecided", "once").index(verdict.verdict)


def _worst(inside: list[Verdict], wrapper: str) -> Verdict:
    if not inside:
        return Verdict("undecided", None, f"the sum inside `{wrapper}` is not visible as one")
    worst = min(inside, key=_badness)
    return Verdict(worst.verdict, worst.configuration, f"inside `{wrapper}`: {worst.reason}")


def _verdict(site: Site, policy: Policy) -> Verdict:
    unknown = _unknown(site, policy)
    if unknown is not None:
        return Verdict("undecided", None, unknown)
    try:
        reduces = _reduces(site, policy)
        return _counted(site, reduces, policy) if site.absorber else _alone(site, reduces, policy)
    except TooManyAtoms:
        return Verdict("undecided", None, "too many conditions to enumerate")


def _unknown(site: Site, policy: Policy) -> str | None:
    """Why a site cannot be decided, None if it can."""
    if site.route is Route.DEFERRED:
        return "this is the absorber: it runs the sum that an earlier block deferred"
    if site.route is Route.KEPT:
        return "this is the absorber: the layer has told its block to leave this sum"
    if site.route is Route.OWNED:
        return "an argument decides who sums: each caller answers for itself"
    if site.raw.shape == "consumed":
        return "a norm consumes the sum on the spot"
    if site.axis == "other":
        return "the group is not known to be TP or EP"
    if site.problem is SkipReason.TOO_MANY_ATOMS:
        return "too many conditions to enumerate"
    if absorbers_of(policy).is_home(site.path):
        return "this is the absorber: it runs the sums that blocks leave to it"
    if site.absorber is None:
        return "no layer around this block was found"
    if site.absorber and policy.helper is None:
        return "the tree has no helper that could be read"
    if site.absorber and not _asked(site, policy):
        return _BY_CONTRACT
    return None


def _asked(site: Site, policy: Policy) -> bool:
    """Whether conditions tell the block who sums: a question that it asks, or a flag that its boundary publishes."""
    absorbers = absorbers_of(policy)
    return absorbers.asked or bool(absorbers.published(owner_of(site)))


def _alone(site: Site, reduces: Formula, policy: Policy) -> Verdict:
    """The verdict where no layer around the block absorbs: the experts' combine may sum, nobody else."""
    if reduces == TRUE:
        return Verdict("once", None, "the block always sums, and no layer around it takes sums over")
    flags = {flag.name for flag in policy.profile.flags}
    for flag in sorted(flags):
        reduces = assign(reduces, flag, FALSE)  # nobody sets it
    combined = disj(found.condition for found in absorbers_of(policy).combines)
    if _shown(conj((reduces, combined)), site, policy) is not None:
        why = f"the block sums, and so does the experts' combine for `{combined}`"
        return Verdict("undecided", None, f"{why}: whether this model runs with that is not known")
    left = conj((negate(reduces), negate(combined), no_backend((reduces, combined), policy)))
    if _shown(left, site, policy) is None:
        return Verdict("once", None, "the block sums where the experts' combine has not, and no layer takes sums over")
    reasons = [
        f"`{reason.text}`"
        for reason in policy.reasons(site.axis)
        if not atom_set(policy.opened(reason.formula)) & flags
        and _shown(conj((left, reason.formula)), site, policy) is not None
    ]
    why = f" for {' or '.join(reasons)}" if reasons else ""
    return Verdict("undecided", None, f"the block leaves its sum out{why}, and no absorber was found around it")


def _counted(site: Site, reduces: Formula, policy: Policy) -> Verdict:
    """The verdict from the number of sums in each configuration."""
    combines = [Reason(str(found.condition), found.condition) for found in absorbers_of(policy).combines]
    others = [*_live(site, policy), *combines]
    twice = _twice(site, reduces, others, policy)
    above = asked_before(site, policy) if twice else TRUE
    if above != TRUE:
        called = replace(site, guard=conj((site.guard, above)))
        twice = _twice(site, _reduces(called, policy), others, policy)
    if twice:
        example, reason = min(twice, key=lambda item: _plainness(item[0]))
        return Verdict("doubled", str(example), f"the block sums, and so does whoever acts on `{reason.text}`")
    absorbed = disj(reason.formula for reason in (*policy.reasons(site.axis), *combines))
    never = conj((negate(reduces), negate(absorbed), no_backend((reduces, absorbed), policy)))
    shown = _shown(never, site, policy)
    if shown is not None:
        return Verdict("lost", str(shown), "neither the block nor anybody after it sums")
    return Verdict("once", None, "block and absorber take turns in every configuration")


def _twice(
    site: Site, reduces: Formula, others: Iterable[Reason], policy: Policy
) -> list[tuple[Configuration, Reason]]:
    """The configurations in which somebody else sums beside a site, with that one's reason."""
    found = ((_shown(conj((reduces, reason.formula)), site, policy), reason) for reason in others)
    return [(shown, reason) for shown, reason in found if shown is not None]


def _shown(holds: Formula, site: Site, policy: Policy) -> Configuration | None:
    """A feasible configuration in which the site has something to sum. Raises ``TooManyAtoms``."""
    group = policy.profile.launch.group_of(site.raw.collective, site.axis)
    return policy.profile.launch.find(policy.opened(holds), () if group is None else (group,))


def _live(site: Site, policy: Policy) -> list[Reason]:
    """The helper's reasons that can arise at a site: predicates, and flags that some layer around it can set."""
    absorbers = absorbers_of(policy)
    block = owner_of(site)
    dead = {flag.name for flag in policy.profile.flags if not absorbers.can_be_set(flag, block)}
    return [reason for reason in policy.reasons(site.axis) if not atom_set(reason.formula) & dead]


def no_backend(formulas: Iterable[Formula], policy: Policy) -> Formula:
    """No a2a backend is in use, in terms of the questions about the backend in the formulas."""
    getter = policy.profile.backend_getter
    if not getter:
        return TRUE
    none = f"{getter}.is_none()"
    asked = {name for formula in formulas for name in atom_set(policy.opened(formula)) if name.startswith(f"{getter}.")}
    return conj(Atom(name) if name == none else negate(Atom(name)) for name in sorted(asked))


def _reduces(site: Site, policy: Policy) -> Formula:
    """When the site reduces: the helper's calls opened, conditions that are no skip reasons chosen in its favour."""
    reduces = policy.opened(policy.with_helper(site.guard))
    known: frozenset[str] = frozenset()
    if policy.helper is not None:
        known = atom_set(policy.opened(disj(reason.formula for reason in policy.reasons(site.axis))))
    others = []
    for name in sorted(atom_set(reduces) - known):
        if is_ownership(name, policy.profile):
            kept = assign(reduces, name, TRUE)
            reduces = kept if kept != FALSE else assign(reduces, name, FALSE)
        elif not is_skip_atom(name, policy.profile) and policy.profile.launch.meaning(name) is None:
            others.append(name)
    return exists(reduces, others)


def _plainness(configuration: Configuration) -> tuple[int, int]:
    """Fewer conditions that no option sets, then fewer options."""
    return len(configuration.also), len(configuration.options)
