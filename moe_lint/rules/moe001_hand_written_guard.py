from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Relation
from moe_lint.model import Finding, Route, Severity
from moe_lint.rules._planning import plan_guard
from moe_lint.rules._wording import helper_call, named, witness
from moe_lint.rules.base import Context, Rule


class HandWrittenGuard(Rule):
    """An all-reduce after the experts decides by hand when to run, instead of asking the central helper.

    Each rank's experts produce a partial sum that must be reduced exactly once. Whether the block or somebody
    downstream does it (fusion with the next residual, reduce-scatter, reduce-scatterv, an FP4 all-gather) is decided
    by one helper. A copy of that decision in a model file is complete on the day it is written; then the helper gains
    a reason and the copy does not. Nothing crashes: in the state that the copy forgot, the output is summed twice and
    every token is scaled by the group size (one such guard took GSM8K from 124/128 to 0/128).

    The message says how the guard relates to the helper today: the same decision (a warning: it can drift), or a
    different one (an error), with the state in which the numbers are wrong.

    Instead of

        if self.tp_size > 1 and not use_reduce_scatter:
            x = tensor_model_parallel_all_reduce(x)

    ask the helper:

        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
            is_tp_path=True,
            use_reduce_scatter=use_reduce_scatter,
        ):
            x = tensor_model_parallel_all_reduce(x)

    The fix replaces only the skip part of the condition. It is safe when both decide alike in every state, and
    corrective when the guard only forgot reasons; if the guard skips where the helper would not, it needs
    `--unsafe-fixes`.
    """

    code = "MOE001"
    name = "hand-written-guard"

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            helper = policy.helper
            if site.route is not Route.INLINE or helper is None:
                continue
            message = f"hand-written guard bypasses `{helper.name}`: "
            if site.relation is Relation.EQUAL:
                message += "the same decision today, a copy that can drift"
            elif site.missing:
                message += f"it still reduces for {named(site.missing)}, where the helper skips"
            elif site.relation is Relation.STRONGER:
                message += "it skips in states in which the helper reduces"
            else:
                message += "it decides differently"
            yield self.finding(
                site,
                message,
                context,
                severity=Severity.WARNING if site.relation is Relation.EQUAL else None,
                witness=witness(site, policy),
                remedy=f"guard it with `not {helper_call(site, policy)}`",
                fix=plan_guard(site, context),
            )
