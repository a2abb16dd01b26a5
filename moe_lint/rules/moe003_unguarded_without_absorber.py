from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Confidence, Finding, Route, Severity
from moe_lint.rules._cases import BARE, ROUTED, case, experts
from moe_lint.rules._planning import plan_guard
from moe_lint.rules._wording import helper_call
from moe_lint.rules.base import Context, Rule


class UnguardedWithoutAbsorber(Rule):
    """An all-reduce after the experts has no skip condition, in a model in which nothing absorbs the sum.

    That is right today: no layer around the block builds an absorber, so the block is the only one to reduce. The
    rule is off by default. Select it to list the models that would need the helper if they were moved to the
    `LayerCommunicator`.

    There is no fix to apply blindly: a helper call in such a model can lose the only reduction there is. `--fix`
    leaves these sites alone unless `--unsafe-fixes` is given.
    """

    code = "MOE003"
    name = "unguarded-without-absorber"
    severity = Severity.INFO
    confidence = Confidence.LOW
    VALID = (
        case(
            "layer-communicator",
            experts(
                BARE,
            ),
        ),
        case(
            "helper",
            experts(
                ROUTED,
            ),
            absorber=False,
        ),
        case(
            "one-reason",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
            absorber=False,
        ),
    )
    INVALID = (
        case(
            "size-only",
            experts(
                """
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE003
                """,
            ),
            absorber=False,
        ),
        case(
            "no-condition",
            experts(
                "x = tensor_model_parallel_all_reduce(x)  # <- MOE003",
            ),
            absorber=False,
        ),
        case(
            "shared-experts-added",
            experts(
                """
                x = x + self.shared_experts(x)
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE003
                """,
            ),
            absorber=False,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for site in context.judged():
            if site.route is Route.NONE and site.absorber is False:
                yield self.finding(
                    site,
                    "all-reduce after the experts has no skip condition; right as long as nothing around it absorbs",
                    context,
                    remedy=f"if the model gets an absorber, guard it with `not {helper_call(site, context.policy)}`",
                    fix=plan_guard(site, context),
                )
