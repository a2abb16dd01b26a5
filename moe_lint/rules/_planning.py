"""Judged site -> FixPlan: what a codemod is to rewrite, and how safe that is. Computed, never assumed."""

from __future__ import annotations

from msgspec.structs import replace

from moe_lint.formula import TRUE, Formula, Relation, atom_set
from moe_lint.model import FixPlan, Route, Safety, Span
from moe_lint.policy import Policy
from moe_lint.rules._handing import HandedDown, hand_down
from moe_lint.rules._wording import helper_arguments, helper_name, named, over_witness, under_witness
from moe_lint.rules.base import Context
from moe_lint.sites import Site, owner_of, without_topology


def plan(site: Site, context: Context) -> FixPlan | None:
    """The rewrite that routes a site through the helper, whatever its guard does today."""
    return plan_call(site, context) if site.route is Route.HELPER else plan_guard(site, context)


def plan_guard(site: Site, context: Context) -> FixPlan | None:
    """Replace the skip part of a site's guard by the helper, or by the tree's wrapper. None: by hand only."""
    policy = context.policy
    helper = policy.helper
    if helper is None or site.axis == "other":
        return None
    if helper.owner is not None:  # a method: nothing to import, but somebody to ask
        module = "" if policy.receiver(owner_of(site)) is not None else None
    else:
        module = policy.import_module(site.path)
    if module is None:
        return None
    handed = hand_down(site, context) if site.relation is Relation.WEAKER else None
    if isinstance(handed, HandedDown):
        knowing = replace(site, flags=tuple(sorted((*site.flags, *handed.flags))))
        found = _guard_plan(knowing, policy, module) or _wrap_plan(knowing, policy, module)
        if found is not None and found.safety is Safety.CORRECTIVE:
            default = {flag for flag, _ in handed.flags} - {*handed.asked}
            reason = _gain(knowing, policy, default)
            return replace(found, reason=f"{reason}; {handed.note}", parts=handed.parts)
    found = (
        _wrapper_plan(site, context, module) or _guard_plan(site, policy, module) or _wrap_plan(site, policy, module)
    )
    if isinstance(handed, str) and found is not None and found.safety is Safety.CORRECTIVE:
        return replace(found, reason=f"{found.reason} (not done here: {handed})")
    return found


def plan_call(site: Site, context: Context) -> FixPlan | None:
    """Correct the arguments of the helper call in a site's guard."""
    policy = context.policy
    helper = policy.helper
    if helper is None:
        return None
    parts = [part for part in site.raw.guard if policy.helper_calls(part.formula)]
    if len(parts) != 1 or len(policy.helper_calls(parts[0].formula)) != 1:
        return None
    safety, reason = _safety(site, policy)
    return FixPlan(
        site.path,
        "call",
        site.raw.statement,
        parts[0].carrier or parts[0].span,
        parts[0].positive,
        (),
        helper.name,
        helper_arguments(site, policy),
        "",
        safety,
        reason,
    )


def _guard_plan(site: Site, policy: Policy, module: str) -> FixPlan | None:
    helper = policy.helper
    assert helper is not None
    kinds = {part: [_kind(text, formula, site, policy) for text, formula in part.operands] for part in site.raw.guard}
    carrying = [part for part, found in kinds.items() if {"skip", "mixed"} & set(found)]
    if any("mixed" in found for found in kinds.values()) or len(carrying) > 1:
        return None
    if carrying:
        target = carrying[0]
    else:
        inner = [part for part in site.raw.guard if part.kind in ("if", "ternary") and part.exclusive]
        if not inner or inner[-1] is not site.raw.guard[-1]:
            return None
        target = inner[-1]
    if target.kind not in ("if", "else", "ternary", "early-exit"):
        return None
    safety, reason = _safety(site, policy)
    if not target.exclusive:
        safety, reason = Safety.UNSAFE, "the condition also guards other statements"
    drop = tuple(text for (text, _), kind in zip(target.operands, kinds[target], strict=True) if kind == "skip")
    return FixPlan(
        site.path,
        "guard",
        site.raw.statement,
        target.carrier or target.span,
        target.positive,
        drop,
        helper_name(site, policy),
        helper_arguments(site, policy),
        module,
        safety,
        reason,
    )


def _wrap_plan(site: Site, policy: Policy, module: str) -> FixPlan | None:
    """A bare `x = all_reduce(x)` or `return all_reduce(x)` gets an `if` of its own."""
    helper = policy.helper
    assert helper is not None
    if site.route is not Route.NONE or not _stands_alone(site):
        return None
    safety, reason = _safety(site, policy)
    return FixPlan(
        site.path,
        "wrap",
        site.raw.statement,
        None,
        True,
        (),
        helper_name(site, policy),
        helper_arguments(site, policy),
        module,
        safety,
        reason,
    )


def _stands_alone(site: Site) -> bool:
    raw = site.raw
    return raw.operand.isidentifier() and (
        raw.shape == "return" or (raw.shape == "assign" and raw.target == raw.operand)
    )


def _wrapper_plan(site: Site, context: Context, module: str) -> FixPlan | None:
    """`x = wrapper(x)` in a tree whose sanctioned form is a wrapper that does just what this site does."""
    wrapper = context.wrappers.get(site.raw.collective)
    if wrapper is None or not _stands_alone(site) or (wrapper.takes_flags and site.raw.flags):
        return None
    if site.method in context.policy.profile.wrappers:
        return None  # it would call itself
    whole: Span | None = None
    for part in site.raw.guard:
        if all(_kind(text, formula, site, context.policy) in ("topology", "skip") for text, formula in part.operands):
            if part.kind != "if" or part.carrier is not None or not part.exclusive or part.statement is None:
                return None
            whole = whole or part.statement
        elif whole is not None:
            return None  # a foreign condition inside: replacing the outer statement would lose it
    safety, reason = _safety(site, context.policy)
    return FixPlan(
        site.path,
        "wrapper",
        site.raw.statement,
        None,
        True,
        (),
        f"{context.policy.receiver(owner_of(site))}.{wrapper.name}" if wrapper.method else wrapper.name,
        (("", site.raw.operand),),
        module,
        safety,
        reason,
        replace=(whole or site.raw.statement,),
    )


def _kind(written: str, formula: Formula, site: Site, policy: Policy) -> str:
    """What an operand of a condition is about: topology, skip, foreign, or mixed (skip and foreign in one)."""
    rest = without_topology(formula, policy.profile)
    if rest == TRUE:
        return "topology"
    names = atom_set(rest)
    if any(":=" in text or "await " in text for text in (written, *names)):
        return "mixed"  # it does more than ask
    # only what the helper covers at this very site may be dropped: anything else stays in the guard
    covered = {name for r in policy.reasons(site.axis, site.known_flags) for name in atom_set(r.formula)}
    skips = names & (covered | policy.delegates() | set(policy.helper_calls(rest)))
    if not skips:
        return "foreign"
    return "skip" if skips == names else "mixed"


def _safety(site: Site, policy: Policy) -> tuple[Safety, str]:
    """The safety of routing a site through the helper, and the reason in one line."""
    if site.relation is Relation.EQUAL:
        return Safety.SAFE, "the same decision in every state"
    told = site.absorber or site.route in (Route.INLINE, Route.HELPER)
    if site.relation is Relation.WEAKER and told:
        lacking = {*site.missing} - {*site.known_flags}
        unknown = tuple(flag.name for flag in policy.profile.flags if flag.name in lacking)
        told_not = f"; {named(unknown)} {_not_in_scope(unknown)}" if unknown and site.absorber else ""
        return Safety.CORRECTIVE, f"{_gain(site, policy, set())}{told_not}"
    if site.relation is Relation.WEAKER:
        return Safety.UNSAFE, "no absorber was found around this block: the sum could be lost"
    return Safety.UNSAFE, under_witness(site, policy) or over_witness(site, policy) or "the decision changes"


def _not_in_scope(flags: tuple[str, ...]) -> str:
    return "is not in scope here: hand it down" if len(flags) == 1 else "are not in scope here: hand them down"


def _gain(site: Site, policy: Policy, default: set[str]) -> str:
    """For what a site stops reducing behind the helper; the flags in ``default`` stay False there."""
    reachable = {reason.text for reason in policy.reasons(site.axis, site.known_flags)} - default
    gained = tuple(reason for reason in site.missing if reason in reachable)
    return f"stops reducing for {named(gained) if gained else 'what the helper skips'}"
