"""What the rules about layers share: which reductions a call is to answer for, and how calls and layers are told."""

from __future__ import annotations

from collections.abc import Iterator

from moe_lint.callers import Callers, Edge, Frame, Layer, Sum
from moe_lint.facts import Call, is_reduction_name
from moe_lint.formula import Atom, Formula, atom_set, conj, disj, exists, negate
from moe_lint.index import Ref
from moe_lint.model import Finding, FixPlan, Related, Severity, Span
from moe_lint.profile import Flag, Profile
from moe_lint.rules.base import Context, Rule

#: What is called and sounds like a reduction.
_REDUCING = r"\b\w*(?:reduce|scatter)\w*(?=\s*\()"


def flag_of(profile: Profile, name: str) -> Flag:
    return next(flag for flag in profile.flags if flag.name == name)


def block_sums(callers: Callers, edge: Edge) -> list[Sum]:
    """The reductions of a block's output that a call reaches: after the experts, or those of a dense block.

    A reduction whose owner is left open (`self.reduce_results` of an unknown value) is nobody's evidence.
    """
    profile = callers.index.profile
    sums = [s for s in callers.sums(edge) if s.site.axis != "other"]
    after_experts = [s for s in sums if s.site.post_experts]
    if not after_experts and has_experts(callers, edge):
        return []  # what is summed there are the shared experts alone
    return [
        s
        for s in after_experts or sums
        if not any(name.rsplit(".", 1)[-1] in profile.ownership for name in atom_set(s.condition))
    ]


def has_experts(callers: Callers, edge: Edge) -> bool:
    """Whether the callee is a block of experts: it, or a block that it calls, builds them."""
    instance = edge.target.instance
    if instance is None:
        return True
    profile = callers.index.profile
    return any(profile.is_expert_attribute(name) for name in callers.built_names(instance.owner))


def runs_in_spite_of(callers: Callers, edge: Edge, flag: str) -> Sum | None:
    """A reduction behind a call that runs although the flag is set, as far as can be proved."""
    for found in block_sums(callers, edge):
        if callers.possible(conj((found.condition, Atom(flag))), unknown=False):
            return found
    return None


def absorbs(callers: Callers, layer: Layer, edge: Edge, flag: Flag) -> bool:
    """Whether the layer has the sum absorbed when the flag is set at a call.

    A sum that is deferred to the next layer is absorbed where the tensor is marked as owing it.
    """
    if not flag.last:
        return True
    marks, asked = callers.marks(layer), conj((edge.target.holds, Atom(flag.name)))
    if not any(callers.possible(conj((mark, asked))) for mark in marks):
        return False
    # whatever a mark asks beside the flags: without one of them there is none
    flags = {one.name for one in callers.index.profile.flags}
    widest = disj(exists(mark, sorted(atom_set(mark) - flags)) for mark in marks)
    return not callers.possible(conj((asked, negate(widest))), unknown=False)


def defers(callers: Callers, layer: Layer, flag: Flag) -> bool:
    """Whether the layer marks what its block of experts (or, if it has none, any block) leaves as owing a sum."""
    marked = [conj((mark, Atom(flag.name))) for mark in callers.marks(layer)]
    blocks = [edge for frame in layer.frames for edge in callers.edges(frame) if edge.built is not None]
    told = [edge for edge in blocks if callers.asked(edge.frame, edge.call, flag.name)]
    sparse = [edge for edge in told if has_experts(callers, edge)]
    return any(
        callers.possible(conj((mark, edge.target.holds)), unknown=False) for edge in sparse or told for mark in marked
    )


def deferring(callers: Callers, layer: Layer) -> Iterator[Related]:
    """The place where a layer marks a tensor."""
    for frame in layer.frames:
        conduct = callers.conduct(frame.function)
        for mark in conduct.marks if conduct is not None else ():
            if mark.value is not False:
                yield Related(frame.path, mark.span.line, "the sum is deferred here")
                return


def callee_name(edge: Edge) -> str:
    """`Block.forward`"""
    return edge.target.function.name


def place(found: Sum) -> Related:
    return Related(found.site.path, found.site.raw.span.line, f"`{found.site.raw.collective}` runs here")


def launch(context: Context, formula: Formula, found: Sum | None = None, beside: str = "") -> str:
    """` (for example `--tp 2 …`)`: a launch configuration in which a condition holds; nothing where none is known.

    ``beside`` is an option that is needed, too.
    """
    axis = found.site.axis if found is not None else "TP"
    collective = found.site.raw.collective if found is not None else ""
    configuration = context.policy.configuration(formula, axis, collective)
    more = f" with `{beside}`" if beside else ""
    return f" (for example {configuration}{more})" if configuration is not None else more


def calls_a_reducer(owner: Ref, context: Context) -> bool:
    """Whether a class calls something that sounds like a reduction and is none that is known."""
    profile = context.index.profile
    known = {*profile.collectives, *profile.wrappers, *profile.helpers, *(flag.predicate for flag in profile.flags)}
    for ref in (*context.index.mro(owner), *context.index.subclasses(owner)):
        facts = context.index.facts(ref.path)
        for name in facts.finds(ref.name, _REDUCING) if facts is not None and ref.name in facts.classes else ():
            if name not in known and not is_reduction_name(name) and not name.startswith(("should_", "is_")):
                return True
    return False


def call_finding(
    rule: Rule,
    frame: Frame,
    call: Call,
    message: str,
    *,
    span: Span | None = None,
    witness: str | None = None,
    remedy: str | None = None,
    related: tuple[Related, ...] = (),
    severity: Severity | None = None,
    fix: FixPlan | str | None = None,
) -> Finding:
    """A finding at a call; ``fix``: a plan, or why not."""
    return Finding(
        rule.code,
        rule.name,
        frame.path,
        span or call.span,
        severity or rule.severity,
        rule.confidence,
        message,
        frame.function.name.rsplit(".", 1)[-1],
        frame.class_name,
        None,
        witness,
        None,
        related,
        remedy,
        fix if isinstance(fix, FixPlan) else None,
        unfixable=fix if isinstance(fix, str) else None,
    )


__all__ = [
    "Context",
    "block_sums",
    "call_finding",
    "callee_name",
    "calls_a_reducer",
    "deferring",
    "defers",
    "flag_of",
    "has_experts",
    "launch",
    "place",
    "runs_in_spite_of",
]
