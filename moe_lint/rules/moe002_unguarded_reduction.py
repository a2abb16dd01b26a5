from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Relation
from moe_lint.model import Finding, Route
from moe_lint.rules._wording import helper_call, witness
from moe_lint.rules.base import Context, Rule


class UnguardedReduction(Rule):
    """TODO"""

    code = "MOE002"
    name = "unguarded-reduction"

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            if site.route is not Route.NONE or not site.absorber or site.relation is Relation.EQUAL:
                continue
            yield self.finding(
                site,
                "all-reduce after the experts has no skip condition",
                context,
                witness=witness(site, policy),
                remedy=f"guard it with `not {helper_call(site, policy)}`",
            )
