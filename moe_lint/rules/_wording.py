"""How witnesses, guards and remedies are told: the same words in every rule."""

from __future__ import annotations

from collections.abc import Iterator

from moe_lint.formula import State
from moe_lint.law import Example, doubled, lost
from moe_lint.policy import Policy
from moe_lint.rules._calls import helper_calls
from moe_lint.sites import Site, owner_of


def named(texts: tuple[str, ...]) -> str:
    """`a`, `a` and `b`, or `a`, `b` and `c`."""
    quoted = [f"`{text}`" for text in texts]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def setting(state: State, policy: Policy) -> str:
    """A state in the user's words: which conditions hold in it."""
    flags = {flag.name for flag in policy.profile.flags}
    return " and ".join(f"`{name}=True`" if name in flags else f"`{name}` true" for name in state.true())


def absorber_of(state: State, policy: Policy) -> str:
    """Who sums downstream in a state in which the helper skips."""
    for flag in policy.profile.flags:
        if flag.name in state.true():
            return flag.absorber
    if any(name.startswith(f"{policy.profile.backend_getter}.") for name in state.true()):
        return "the a2a backend's combine"
    return policy.profile.absorber


def example(found: Example) -> str:
    """` (for example `--tp 2 …`)`, or nothing where no configuration is known."""
    return f" (for example {found.configuration})" if found.configuration is not None else ""


def over_witness(site: Site, policy: Policy) -> str | None:
    """The state in which the site reduces although somebody downstream does, in one sentence."""
    found = doubled(site, policy)
    if found is None:
        return None
    when = setting(found.state, policy)
    where = f"with {when}" if when else "in every state"
    return (
        f"{where}{example(found)} this all-reduce still runs, and {absorber_of(found.state, policy)} sums again: "
        "the output is multiplied by the group size"
    )


def under_witness(site: Site, policy: Policy) -> str | None:
    """The state in which nobody reduces, in one sentence."""
    found = lost(site, policy)
    if found is None:
        return None
    when = setting(found.state, policy)
    where = f"with {when} and no skip reason" if when else "with no skip reason at all"
    if found.configuration is None and policy.profile.backend_getter in str(policy.opened(site.guard)):
        return "with an a2a backend in use this all-reduce does not run: right only if the backend's combine sums"
    return (
        f"{where}{example(found)} this all-reduce does not run, and nobody else sums: "
        "each rank keeps its own partial sum"
    )


def witness(site: Site, policy: Policy) -> str | None:
    sentences = [s for s in (over_witness(site, policy), under_witness(site, policy)) if s is not None]
    return "; ".join(sentences) or None


def helper_call(site: Site, policy: Policy) -> str:
    """The call that belongs at a site, as source text."""
    helper = policy.helper
    assert helper is not None
    arguments = ", ".join(f"{name}={value}" for name, value in helper_arguments(site, policy))
    return f"{helper_name(site, policy)}({arguments})"


def helper_name(site: Site, policy: Policy) -> str:
    """The helper as a site calls it: by its name, or as a method of the object that can answer there."""
    helper = policy.helper
    assert helper is not None
    if helper.owner is None:
        return helper.name
    return f"{policy.receiver(owner_of(site)) or helper.owner}.{helper.name}"


#: An argument of the helper that nothing at a site can be taken for.
UNKNOWN = "…"


def helper_arguments(site: Site, policy: Policy) -> tuple[tuple[str, str], ...]:
    """(parameter, source text) of the helper call that belongs at a site: axis, flags in scope, what it needs."""
    helper = policy.helper
    assert helper is not None
    scope = dict(site.flags)
    arguments = [(helper.axis_parameter, str(site.axis != "EP"))] if helper.axis_parameter is not None else []
    arguments += [(parameter, scope[flag]) for parameter, flag in helper.flags if flag in scope]
    return (*arguments, *_further(site, policy))


def _further(site: Site, policy: Policy) -> Iterator[tuple[str, str]]:
    """What else a helper call at a site is given: as it is there now, or what the method knows by that name."""
    helper, facts = policy.helper, policy.index.facts(site.path)
    given = {name: text for call in helper_calls(site, policy) for name, text in call.arguments.items()}
    function = site.raw.function.removesuffix(".<lambda>")
    known = facts.header(function)[1] if facts is not None and function in facts.functions else ()
    for name in helper.others if helper is not None else ():
        if name in given:
            yield name, given[name]
        elif helper is not None and name in helper.required:
            yield name, name if name in known else UNKNOWN
