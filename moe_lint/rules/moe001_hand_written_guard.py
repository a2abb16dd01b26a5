from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Relation
from moe_lint.model import Finding, Route, Severity
from moe_lint.rules._wording import helper_call, named, witness
from moe_lint.rules.base import Context, Rule


class HandWrittenGuard(Rule):
    """TODO"""

    code = "MOE001"
    name = "hand-written-guard"

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            if site.route is not Route.INLINE:
                continue
            helper = policy.helper
            assert helper is not None
            message = f"hand-written guard bypasses `{helper.name}`: "
            if site.relation is Relation.EQUAL:
                message += "the same decision today, a copy that can drift"
            elif site.missing:
                message += f"it also reduces when {named(site.missing)} holds, where the helper skips"
            else:
                message += "it decides differently"
            yield self.finding(
                site,
                message,
                context,
                severity=Severity.WARNING if site.relation is Relation.EQUAL else None,
                witness=witness(site, policy),
                remedy=f"guard it with `not {helper_call(site, policy)}`",
            )
