from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Related, Route
from moe_lint.rules._planning import plan
from moe_lint.rules._wording import named, witness
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site


class SiblingDrift(Rule):
    """Two `forward…` methods of one class reduce the same sum and skip for different reasons.

    `forward_normal`, `forward_normal_dual_stream` and `forward_cpu` are the same block on different paths; the layer
    around them neither knows nor cares which one runs, and absorbs in the same states. A reason that one sibling
    honours and another forgets makes the numbers depend on the path.

    Instead of one method with `not should_allreduce_fusion` beside one that asks the helper, let both ask it. Methods
    that do not reduce at all (`forward_deepep`, whose combine has already summed) are not compared. Reported at the
    reduction that lacks the reason; the rewrite is that of MOE001 or MOE002.
    """

    code = "MOE102"
    name = "sibling-drift"

    def check(self, context: Context) -> Iterable[Finding]:
        for group in context.groups():
            forwards = [site for site in group if _is_forward(site)]
            for site in forwards:
                better = [
                    other
                    for other in forwards
                    if other.raw.function != site.raw.function
                    and other.axis == site.axis
                    and set(other.missing) < set(site.missing)
                    and other.route in (Route.INLINE, Route.HELPER)
                    and site.route in (Route.INLINE, Route.HELPER, Route.NONE)
                ]
                if better:
                    best = min(better, key=lambda other: (len(other.missing), other.raw.span))
                    yield self._report(site, best, context)

    def _report(self, site: Site, other: Site, context: Context) -> Finding:
        lacking = tuple(reason for reason in site.missing if reason not in other.missing)
        return self.finding(
            site,
            f"`{site.method}` still reduces for {named(lacking)}, its sibling `{other.method}` skips there",
            context,
            witness=witness(site, context.policy),
            remedy="guard both with the helper",
            fix=plan(site, context),
            related=(Related(other.path, other.raw.span.line, f"the reduction in `{other.method}`"),),
        )


def _is_forward(site: Site) -> bool:
    return site.method.lstrip("_").startswith("forward")
