"""The law at a site: block and absorber together sum exactly once, in every feasible launch configuration.

A site's guard and the helper's answer are boolean functions of the same conditions. Wherever both reduce, the output is
doubled; wherever neither does, it is lost. Each is searched for among the launch configurations of the engine, so that
a verdict comes with a command line that shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moe_lint.formula import FALSE, Atom, Formula, State, assign, atom_set, conj, disj, exists, negate
from moe_lint.launch import Configuration
from moe_lint.policy import Policy
from moe_lint.sites import Site, is_ownership, is_skip_atom


@dataclass(frozen=True, slots=True)
class Example:
    """A state in which a site breaks the law, and a launch configuration in which it occurs (None: none is known)."""

    state: State
    configuration: Configuration | None


def doubled(site: Site, policy: Policy) -> Example | None:
    """Where the site reduces though the helper skips: the reason with the cheapest configuration; None if nowhere."""
    fallback = site.comparison.over if site.comparison is not None else None
    if fallback is None:
        return None
    reduces = _reduces(site, policy)
    found: list[Example] = []
    for reason in policy.reasons(site.axis):
        if reason.text in site.missing and isinstance(reason.formula, Atom):
            holds = conj((reduces, reason.formula))
            state = State(((reason.formula.name, True),))
            found.append(Example(state, policy.configuration(holds, site.axis, site.raw.collective)))
    shown = [example for example in found if example.configuration is not None]
    if shown:
        return min(shown, key=_plainest)
    return Example(fallback, policy.configuration(_holds(fallback), site.axis, site.raw.collective))


def lost(site: Site, policy: Policy) -> Example | None:
    """Where the site does not reduce though the helper would; None if nowhere.

    With an a2a backend whose combine may have summed already nothing is lost for certain: those states come last.
    """
    state = site.comparison.under if site.comparison is not None else None
    if state is None:
        return None
    skips = disj(reason.formula for reason in policy.reasons(site.axis))
    neither = conj((negate(_reduces(site, policy)), negate(skips), no_backend(policy, (_reduces(site, policy), skips))))
    return Example(state, policy.configuration(neither, site.axis, site.raw.collective))


def no_backend(policy: Policy, formulas: Iterable[Formula]) -> Formula:
    """No a2a backend is in use, in terms of the backend's questions in the formulas."""
    getter = policy.profile.backend_getter
    if not getter:
        return conj(())
    none = f"{getter}.is_none()"
    asked = {name for formula in formulas for name in atom_set(policy.opened(formula)) if name.startswith(f"{getter}.")}
    return conj(Atom(name) if name == none else negate(Atom(name)) for name in sorted(asked))


def _reduces(site: Site, policy: Policy) -> Formula:
    """When the site reduces: the helper's calls opened, conditions that are no skip reasons chosen in its favour."""
    reduces = policy.opened(policy.with_helper(site.guard))
    known = atom_set(policy.opened(disj(reason.formula for reason in policy.reasons(site.axis))))
    for name in sorted(atom_set(reduces) - known):
        if is_ownership(name, policy.profile):
            kept = assign(reduces, name, conj(()))
            reduces = kept if kept != FALSE else assign(reduces, name, FALSE)
        elif not is_skip_atom(name, policy.profile) and policy.profile.launch.meaning(name) is None:
            reduces = exists(reduces, name)
    return reduces


def _holds(state: State) -> Formula:
    return conj(Atom(name) if value else negate(Atom(name)) for name, value in state.values)


def _plainest(example: Example) -> tuple[int, int]:
    """Fewer conditions that no option sets, then fewer options."""
    configuration = example.configuration
    assert configuration is not None
    return len(configuration.also), len(configuration.options)
