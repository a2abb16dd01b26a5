"""Judged site -> FixPlan: what a codemod is to rewrite, and how safe that is. Computed, never assumed."""

from __future__ import annotations

import re

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.absorbers import absorbers_of
from moe_lint.facts import GuardPart
from moe_lint.formula import TRUE, Formula, Relation, TooManyAtoms, atom_set, conj, disj, negate, satisfiable
from moe_lint.model import Axis, FixPlan, Route, Safety, Span
from moe_lint.policy import Policy
from moe_lint.rules._handing import HandedDown, hand_down
from moe_lint.rules._wording import UNKNOWN, helper_arguments, helper_name, named, over_witness, under_witness
from moe_lint.rules.base import Context
from moe_lint.sites import Site, is_skip_atom, owner_of, without_ownership, without_topology


def plan(site: Site, context: Context) -> FixPlan | str | None:
    """The rewrite that routes a site through the helper, whatever its guard does today."""
    return plan_call(site, context) if site.route is Route.HELPER else plan_guard(site, context)


def plan_guard(site: Site, context: Context) -> FixPlan | str | None:
    """Replace the skip part of a site's guard by the helper, or by the tree's wrapper; or the reason why not."""
    policy = context.policy
    helper = policy.helper
    if helper is None or site.axis == "other":
        return None
    if helper.proposed:  # what is not there cannot be imported
        return f"the tree has no `{helper.name}` yet: `moe-lint init` adds it"
    module = policy.helper_module(site.path, owner_of(site))
    if module is None:
        return f"`{helper.name}` cannot be reached from here"
    unknown = _unknown_arguments(site, policy)
    if unknown:
        return unknown
    handed = hand_down(site, context) if site.relation is Relation.WEAKER else None
    if isinstance(handed, HandedDown):
        knowing = replace(site, flags=tuple(sorted((*site.flags, *handed.flags))))
        found = _route(knowing, context, module)
        if isinstance(found, FixPlan) and found.safety is Safety.CORRECTIVE:
            default = {flag for flag, _ in handed.flags} - {*handed.asked}
            reason = _gain(knowing, policy, default)
            return replace(found, reason=f"{reason}; {handed.note}", parts=(*found.parts, *handed.parts))
    found = _pair_plan(site, context) or _wrapper_plan(site, context, module) or _route(site, context, module)
    if isinstance(handed, str) and isinstance(found, FixPlan) and found.safety is Safety.CORRECTIVE:
        return replace(found, reason=f"{found.reason} (not done here: {handed})")
    return found


def plan_call(site: Site, context: Context) -> FixPlan | str | None:
    """Correct the arguments of the helper call in a site's guard."""
    policy = context.policy
    helper = policy.helper
    if helper is None:
        return None
    parts = [part for part in site.raw.guard if policy.helper_calls(part.formula)]
    if len(parts) != 1 or len(policy.helper_calls(parts[0].formula)) != 1:
        return None
    unknown = _unknown_arguments(site, policy)
    if unknown:
        return unknown
    safety, reason = _safety(site, policy)
    regained = _regained(site, policy) if safety is Safety.SAFE else ()
    if regained:
        safety, reason = Safety.UNSAFE, f"reduces for {named(regained)}, too"
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


def _unknown_arguments(site: Site, policy: Policy) -> str | None:
    """Why the helper's call cannot be written at a site, if it needs more than is known there."""
    unknown = tuple(name for name, text in helper_arguments(site, policy) if text == UNKNOWN)
    name = policy.helper.name if policy.helper is not None else ""
    return f"`{name}` needs {named(unknown)}, and what that is here is not known" if unknown else None


class _Condition(Struct, frozen=True):
    """One condition of a site's guard, as the helper's call may change it."""

    part: GuardPart
    #: what each operand is about
    kinds: tuple[str, ...]
    #: it decides about the reduction and nothing else
    alone: bool

    @property
    def drop(self) -> tuple[str, ...]:
        return tuple(t for (t, _), kind in zip(self.part.operands, self.kinds, strict=True) if kind == "skip")

    @property
    def dropped(self) -> Formula:
        return conj(f for (_, f), kind in zip(self.part.operands, self.kinds, strict=True) if kind == "skip")

    @property
    def kept(self) -> Formula:
        return conj(f for (_, f), kind in zip(self.part.operands, self.kinds, strict=True) if kind != "skip")

    @property
    def emptied(self) -> bool:
        return {*self.kinds} == {"skip"}

    @property
    def separable(self) -> bool:
        """Whether its skip operands can be taken out: asked one by one, they are all that it asks."""
        operands = [formula for _, formula in self.part.operands]
        whole = (conj(operands), negate(disj(negate(operand) for operand in operands)))
        return self.part.kind in _REWRITABLE and self.part.formula in whole and "act" not in self.kinds


#: Conditions that a rewrite can change where they stand.
_REWRITABLE = ("if", "else", "ternary", "early-exit")


def _route(site: Site, context: Context, module: str) -> FixPlan | str:
    """Ask the helper where the guard names skip reasons; or just around the reduction, if that is all that may change.

    Whatever a condition decides besides the reduction stays as it is. Skip reasons that cannot be taken out for that
    reason stay, too: beside the helper they are redundant.
    """
    policy = context.policy
    safety, reason = _safety(site, policy)
    conditions = [_condition(part, site, context) for part in site.raw.guard]
    removable = [c for c in conditions if c.drop and c.separable and c.alone]
    here = [c for c in removable if c.emptied] or removable
    here = here or [c for c in conditions if c.drop and c.separable and _same(c, site, context)]
    fitting = here or [c for c in conditions[-1:] if c.alone and c.part.kind in ("if", "ternary")]
    target = fitting[-1] if fitting else None
    others = [c for c in removable if c is not target and not c.emptied]
    stays = [c.kept if c is target or c in others else c.part.formula for c in conditions]
    if safety is Safety.UNSAFE and not _equal_beside_helper(conj(stays), site, policy):
        return "it also skips where the helper does not, in a condition that decides about other code, too"
    if target is None and not _stands_alone(site):
        return "the reduction is a part of its statement, and the conditions around it decide about other code, too"
    common = (helper_name(site, policy), helper_arguments(site, policy), module, safety, reason)
    parts = tuple(_part(c, site, safety) for c in others)
    if target is None:
        return FixPlan(site.path, "wrap", site.raw.statement, None, True, (), *common, parts=parts)
    guard = target.part.carrier or target.part.span
    drop = target.drop if here else ()
    return FixPlan(
        site.path,
        "guard",
        site.raw.statement,
        guard,
        target.part.positive,
        drop,
        *common,
        parts=parts,
        harmless=_questions(site, policy),
    )


def _questions(site: Site, policy: Policy) -> tuple[str, ...]:
    """The calls in a guard that the helper makes, too."""
    asked = {name for reason in policy.reasons(site.axis) for name in atom_set(reason.formula)}
    names = {name for part in site.raw.guard for name in atom_set(part.formula)}
    return tuple(sorted(name for name in names & asked if name.endswith(")")))


def _condition(part: GuardPart, site: Site, context: Context) -> _Condition:
    facts = context.index.facts(site.path)
    assert facts is not None
    kinds = tuple(_kind(text, formula, site, context.policy) for text, formula in part.operands)
    function = site.raw.function.removesuffix(".<lambda>")
    of_interest = "skip" in kinds or part is site.raw.guard[-1]  # comparing what a function does takes long
    alone = part.kind in _REWRITABLE and of_interest and facts.only_guards(function, site.raw.span, part.span)
    return _Condition(part, kinds, alone)


def _part(condition: _Condition, site: Site, safety: Safety) -> FixPlan:
    """Take the skip operands out of a condition; the helper is asked in another one."""
    part = condition.part
    guard = part.carrier or part.span
    why = "asked by the helper"
    return FixPlan(
        site.path, "guard", site.raw.statement, guard, part.positive, condition.drop, "", (), "", safety, why
    )


def _same(condition: _Condition, site: Site, context: Context) -> bool:
    """Whether the skip operands of a condition say what the helper says, so that it may replace them anywhere.

    Not where the condition guards a second reduction: its helper call may be another.
    """
    span, policy = condition.part.span, context.policy
    others = (s for s in context.sites if s.path == site.path and s.raw.span != site.raw.span)
    if any(part.span == span for other in others for part in other.raw.guard):
        return False
    own = frozenset(name for name in atom_set(condition.dropped) if is_skip_atom(name, policy.profile))
    return _judged(condition.dropped, site, policy, own) is Relation.EQUAL


def _equal_beside_helper(stays: Formula, site: Site, policy: Policy) -> bool:
    asked = policy.skips(site.axis, site.known_flags)
    return _judged(conj((stays, negate(asked))), site, policy) is Relation.EQUAL


def _judged(guard: Formula, site: Site, policy: Policy, own: frozenset[str] = frozenset()) -> Relation | None:
    guard = policy.in_helper_terms(without_topology(guard, policy.profile), owner_of(site))
    guard = without_ownership(guard, policy.profile)
    try:
        return policy.judge(guard, site.axis, site.known_flags, own).relation
    except TooManyAtoms:
        return None


def _stands_alone(site: Site) -> bool:
    """`x = all_reduce(x)`, `y = all_reduce(x)` or `return all_reduce(x)`: it can get an `if` of its own."""
    raw = site.raw
    assigns = raw.shape == "assign" and raw.target is not None and raw.target.isidentifier()
    return raw.operand.isidentifier() and (assigns or raw.shape == "return")


def _wrapper_plan(site: Site, context: Context, module: str) -> FixPlan | None:
    """`x = wrapper(x)` in a tree whose sanctioned form is a wrapper that does just what this site does."""
    wrapper = context.wrappers.get(site.raw.collective)
    whole = _replaceable(site, context)
    if wrapper is None or whole is None or (wrapper.takes_flags and site.raw.flags):
        return None
    if not wrapper.method:
        module = context.policy.import_module(site.path, wrapper.name, wrapper.path) or module
    name = f"{context.policy.receiver(owner_of(site))}.{wrapper.name}" if wrapper.method else wrapper.name
    return _call_wrapper(site, name, module, (whole,), _safety(site, context.policy), context)


def _pair_plan(site: Site, context: Context) -> FixPlan | None:
    """One `x = wrapper(x)` for an EP/TP pair of neighbours, in a tree whose wrapper runs both; the same for each."""
    twins = [
        other
        for other in context.judged()
        if (other.path, other.raw.function) == (site.path, site.raw.function)
        and {other.axis, site.axis} == {"EP", "TP"}
        and other.raw.operand == site.raw.operand
    ]
    if len(twins) != 1:
        return None
    first, second = sorted((site, twins[0]), key=lambda one: one.raw.span)
    wrapper = context.pair_wrappers.get(frozenset((first.raw.collective, second.raw.collective)))
    places = (_replaceable(first, context), _replaceable(second, context))
    module = context.policy.import_module(site.path, wrapper.name, wrapper.path) if wrapper is not None else None
    facts = context.index.facts(site.path)
    if wrapper is None or module is None or facts is None or "return" in (first.raw.shape, second.raw.shape):
        return None
    spans = tuple(place for place in places if place is not None)
    if len(spans) != 2 or spans[0].column != spans[1].column:
        return None
    lines = facts.lines[spans[0].line - 1 : spans[1].end_line]
    between = facts.lines[spans[0].end_line : spans[1].line - 1]
    if any("#" in line for line in lines) or any(line.strip() for line in between):
        return None  # a comment would be lost, or something is done in between
    told = [_safety(one, context.policy) for one in (first, second)]
    worst = max(told, key=lambda one: tuple(Safety).index(one[0]))
    return _call_wrapper(first, wrapper.name, module, spans, worst, context)


def _replaceable(site: Site, context: Context) -> Span | None:
    """The statement that is nothing but the guarded reduction: what a wrapper's call may replace."""
    if not _stands_alone(site) or site.method in context.policy.profile.wrappers:
        return None  # a wrapper would call itself
    if site.raw.shape == "assign" and site.raw.target != site.raw.operand:
        return None
    whole: Span | None = None
    for part in site.raw.guard:
        if all(_kind(text, formula, site, context.policy) in ("topology", "skip") for text, formula in part.operands):
            if part.kind != "if" or part.statement is None or not _condition(part, site, context).alone:
                return None
            whole = whole or part.statement
        elif whole is not None:
            return None  # a foreign condition inside: replacing the outer statement would lose it
    return whole or site.raw.statement


def _call_wrapper(
    site: Site, name: str, module: str, places: tuple[Span, ...], told: tuple[Safety, str], context: Context
) -> FixPlan:
    return FixPlan(
        site.path,
        "wrapper",
        site.raw.statement,
        None,
        True,
        (),
        name,
        (("", site.raw.operand),),
        module,
        *told,
        replace=places,
        harmless=_questions(site, context.policy),
    )


def _kind(written: str, formula: Formula, site: Site, policy: Policy) -> str:
    """What an operand of a condition is about: topology, skip, foreign, mixed (skip and another) or act."""
    rest = without_topology(formula, policy.profile)
    if rest == TRUE:
        return "topology"
    names = atom_set(rest)
    if any(":=" in text or "await " in text for text in (written, *names)):
        return "act"  # it does more than ask
    # only what the helper covers at this very site may be dropped: anything else stays in the guard
    covered = {name for r in policy.reasons(site.axis, site.known_flags) for name in atom_set(r.formula)}
    covered -= _unseen(written, formula, site, policy)
    skips = names & (covered | policy.delegates | set(policy.helper_calls(rest)))
    if not skips:
        return "foreign"
    return "skip" if skips == names == atom_set(formula) else "mixed"


def held_by_name(site: Site, policy: Policy) -> frozenset[str]:
    """The flags in a guard that the helper cannot see: it takes none and reads what the layer published, not these."""
    operands = (operand for part in site.raw.guard for operand in part.operands)
    return frozenset(flag for text, formula in operands for flag in _unseen(text, formula, site, policy))


def _unseen(written: str, formula: Formula, site: Site, policy: Policy) -> frozenset[str]:
    """The flags in one operand that are not asked for as the helper asks (`get_forward().flag`, `plan.flag`)."""
    helper = policy.helper
    if helper is None or helper.flags:
        return frozenset()
    for name, handed in helper_arguments(site, policy):  # an object that is handed to the helper: it reads that, too
        if name in helper.others:
            written = re.sub(rf"(?<![\w.]){re.escape(handed)}\.", "().", written)
    found = set()
    for spelling, flag in policy.profile.flag_names.items():
        if flag in atom_set(formula) and re.search(rf"(?<!\)\.)(?<!\w){spelling}\b", written):
            found.add(flag)
    shown = {flag for spelling, flag in policy.profile.flag_names.items() if re.search(rf"\b{spelling}\b", written)}
    hidden = {flag.name for flag in policy.profile.flags} & atom_set(formula) - shown  # in a local
    return frozenset(found | hidden)


def _safety(site: Site, policy: Policy) -> tuple[Safety, str]:
    """The safety of routing a site through the helper, and the reason in one line."""
    held = tuple(flag.name for flag in policy.profile.flags if flag.name in held_by_name(site, policy))
    if site.relation is Relation.EQUAL and held:
        return Safety.CORRECTIVE, f"stops reducing for what the layer published; {_stay(held)}"
    if site.relation is Relation.EQUAL:
        return Safety.SAFE, "the same decision in every state"
    told = site.absorber or site.route in (Route.INLINE, Route.HELPER)
    if site.relation is Relation.WEAKER and site.absorber and not absorbers_of(policy).asked:
        return Safety.UNSAFE, "the layer boundary takes sums by contract: this one may have to go instead"
    if site.relation is Relation.WEAKER and told:
        lacking = {*site.missing} - {*site.known_flags}
        unknown = tuple(flag.name for flag in policy.profile.flags if flag.name in lacking)
        told_not = f"; {named(unknown)} {_not_in_scope(unknown)}" if unknown and site.absorber else ""
        stay = f"; {_stay(held)}" if held else ""
        return Safety.CORRECTIVE, f"{_gain(site, policy, set())}{told_not}{stay}"
    if site.relation is Relation.WEAKER:
        return Safety.UNSAFE, "no absorber was found around this block: the sum could be lost"
    return Safety.UNSAFE, under_witness(site, policy) or over_witness(site, policy) or "the decision changes"


def _regained(site: Site, policy: Policy) -> tuple[str, ...]:
    """For what a site that asks for the other axis does not reduce, and would if it asked for its own."""
    asked: tuple[Axis, Axis] = ("TP", "EP")
    reasons = {reason.text: reason.formula for axis in asked for reason in policy.reasons(axis)}
    guard = policy.with_helper(without_ownership(site.guard, policy.profile))
    skips = disj(reason.formula for reason in policy.reasons(site.axis, site.known_flags))
    found = []
    for text, formula in reasons.items():
        alone = conj((formula, negate(skips)))
        try:
            skipped = satisfiable(alone) and not satisfiable(conj((alone, guard)))
        except TooManyAtoms:
            skipped = False
        if skipped:
            found.append(text)
    return tuple(found)


def _stay(flags: tuple[str, ...]) -> str:
    return f"{named(flags)} {'stays' if len(flags) == 1 else 'stay'}: the helper asks what was published, not these"


def _not_in_scope(flags: tuple[str, ...]) -> str:
    return "is not in scope here: hand it down" if len(flags) == 1 else "are not in scope here: hand them down"


def _gain(site: Site, policy: Policy, default: set[str]) -> str:
    """For what a site stops reducing behind the helper; the flags in ``default`` stay False there."""
    reachable = {reason.text for reason in policy.reasons(site.axis, site.known_flags)} - default
    gained = tuple(reason for reason in site.missing if reason in reachable)
    return f"stops reducing for {named(gained) if gained else 'what the helper skips'}"
