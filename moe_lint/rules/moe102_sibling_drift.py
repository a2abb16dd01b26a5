from __future__ import annotations

from collections.abc import Iterable

from moe_lint.index import Ref
from moe_lint.model import Finding, Related, Route
from moe_lint.rules._backends import in_wrapper
from moe_lint.rules._cases import ROUTED, case, experts, method
from moe_lint.rules._planning import plan
from moe_lint.rules._wording import named, witness
from moe_lint.rules.base import Context, Rule
from moe_lint.rules.moe309_reduced_twice import one_too_many
from moe_lint.sites import Site

_BOTH = """
if not should_allreduce_fusion and not use_reduce_scatter:
    x = tensor_model_parallel_all_reduce(x)
"""
_ONE = """
if not should_allreduce_fusion:
    x = tensor_model_parallel_all_reduce(x)
"""


class SiblingDrift(Rule):
    """Two `forward…` methods of one class reduce the same sum and skip for different reasons.

    `forward_normal`, `forward_normal_dual_stream` and `forward_cpu` are the same block on different paths; the layer
    around them neither knows nor cares which one runs, and absorbs in the same states. A reason that one sibling
    honours and another forgets makes the numbers depend on the path.

    Instead of one method with `not should_allreduce_fusion` beside one that asks the helper, let both ask it. Methods
    that do not reduce at all (`forward_deepep`, whose combine has already summed) are not compared. Reported at the
    reduction that lacks the reason, which may stand in a method or function that a sibling calls; the rewrite is that
    of MOE001 or MOE002.
    """

    code = "MOE102"
    name = "sibling-drift"
    VALID = (
        case(
            "same-reasons",
            experts(
                """
                if not should_allreduce_fusion and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            experts(
                """
                if not use_reduce_scatter and not should_allreduce_fusion:
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_cpu",
            ),
        ),
        case(
            "helper-in-both",
            experts(
                ROUTED,
                name="forward_normal",
            ),
            experts(
                ROUTED,
                name="forward_cpu",
            ),
        ),
        case(
            "same-reasons-in-a-method",
            experts(_BOTH, name="forward_normal"),
            experts("x = self.reduced(x, should_allreduce_fusion, use_reduce_scatter)", name="forward_cpu"),
            method(_BOTH, name="reduced", parameters="x, should_allreduce_fusion, use_reduce_scatter"),
        ),
        case(
            "one-method-for-both",
            experts("x = self.reduced(x, should_allreduce_fusion)", name="forward_normal"),
            experts("x = self.reduced(x, should_allreduce_fusion)", name="forward_cpu"),
            method(_ONE, name="reduced", parameters="x, should_allreduce_fusion"),
        ),
        case(
            "deepep-does-not-reduce",
            experts(
                ROUTED,
                name="forward_normal",
            ),
            method(
                "x = self.experts.combine(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
    )
    INVALID = (
        case(
            "in-a-method-of-its-own",
            experts(_BOTH, name="forward_normal"),
            experts("x = self.reduced(x, should_allreduce_fusion)", name="forward_cpu"),
            method(_ONE.rstrip() + "  # <- MOE102", name="reduced", parameters="x, should_allreduce_fusion"),
        ),
        case(
            "each-in-a-method-of-its-own",
            experts("x = self.both(x, should_allreduce_fusion, use_reduce_scatter)", name="forward_normal"),
            experts("x = self.one(x, should_allreduce_fusion)", name="forward_cpu"),
            method(_BOTH, name="both", parameters="x, should_allreduce_fusion, use_reduce_scatter"),
            method(_ONE.rstrip() + "  # <- MOE102", name="one", parameters="x, should_allreduce_fusion"),
        ),
        case(
            "cpu-forgets",
            experts(
                ROUTED,
                name="forward_normal",
            ),
            experts(
                """
                if not should_allreduce_fusion:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE102
                """,
                name="forward_cpu",
            ),
        ),
        case(
            "subset-by-hand",
            experts(
                """
                if not should_allreduce_fusion and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            experts(
                """
                if not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE102
                """,
                name="forward_dual_stream",
            ),
        ),
        case(
            "size-only-sibling",
            experts(
                """
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE102
                """,
                name="forward_normal",
            ),
            experts(
                ROUTED,
                name="forward_cpu",
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for owner, sites in _classes(context).items():
            forwards = {site: names for site in sites if (names := _forwards(owner, site, context))}
            for site, names in forwards.items():
                better = [
                    other
                    for other, others in forwards.items()
                    if not names & others
                    and other.axis == site.axis
                    and set(other.missing) < set(site.missing)
                    and other.route in (Route.INLINE, Route.HELPER)
                    and site.route in (Route.INLINE, Route.HELPER, Route.NONE)
                ]
                if better:
                    best = min(better, key=lambda other: (len(other.missing), other.raw.span))
                    yield self._report(site, best, (min(names), min(forwards[best])), context)

    def _report(self, site: Site, other: Site, names: tuple[str, str], context: Context) -> Finding:
        lacking = tuple(reason for reason in site.missing if reason not in other.missing)
        return self.finding(
            site,
            f"`{names[0]}` still reduces for {named(lacking)}, but its sibling `{names[1]}` skips there",
            context,
            witness=witness(site, context.policy),
            remedy="guard both with the helper",
            fix=plan(site, context),
            related=(Related(other.path, other.raw.span.line, f"the reduction in `{names[1]}`"),),
        )


def _classes(context: Context) -> dict[Ref, list[Site]]:
    """The judged reductions, class by class; one in a function belongs to the classes whose methods call it."""
    found: dict[Ref, list[Site]] = {}
    for site in context.judged():
        if site in one_too_many(context):
            continue
        if site.raw.class_name is not None:
            owners = [Ref(site.path, site.raw.class_name)]
        elif in_wrapper(site, context):
            continue
        else:
            calls = context.index.calls_of(Ref(site.path, site.raw.function))
            owners = [Ref(path, call.class_name) for path, call in calls if call.class_name is not None]
        for owner in dict.fromkeys(owners):
            found.setdefault(owner, []).append(site)
    return found


def _forwards(owner: Ref, site: Site, context: Context) -> frozenset[str]:
    """The `forward…` methods of a class that make a reduction, or call the method or function around it."""
    if site.raw.class_name is not None and _is_forward(site.method):
        return frozenset({site.method})
    calls = context.index.calls_of(Ref(site.path, site.raw.function))
    callers = {call.function for path, call in calls if Ref(path, call.class_name or "") == owner}
    return frozenset(name for caller in callers if _is_forward(name := caller.rsplit(".", 1)[-1]))


def _is_forward(method: str) -> bool:
    return method.lstrip("_").startswith("forward")
