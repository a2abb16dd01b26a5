from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Route, Severity
from moe_lint.rules._calls import axis_is_wrong
from moe_lint.rules._cases import PAIR, ROUTED, case, experts
from moe_lint.rules._planning import plan_call
from moe_lint.rules._wording import helper_call, witness
from moe_lint.rules.base import Context, Rule


class WrongAxis(Rule):
    """The helper is asked about the other axis than the one that the guarded all-reduce sums over.

    The helper's answer depends on the axis: an FP4 all-gather absorbs the TP sum, not the EP sum. A copied guard with
    the wrong axis argument skips, or fails to skip, in exactly that state.

    Instead of

        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = moe_expert_parallel_all_reduce(x)

    write

        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=False):
            x = moe_expert_parallel_all_reduce(x)

    A finding without a state in which the numbers differ is a warning. The fix changes the argument. It is corrective
    where the guard reduced too often; where it skipped too often, it brings a reduction back and needs
    `--unsafe-fixes`.
    """

    code = "MOE004"
    name = "wrong-axis"
    VALID = (
        case(
            "pair",
            experts(
                PAIR,
            ),
        ),
        case(
            "tp",
            experts(
                ROUTED,
            ),
        ),
        case(
            "by-hand",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )
    INVALID = (
        case(
            "pair-asks-tp-twice",
            experts(
                """
                if self.ep_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = moe_expert_parallel_all_reduce(x)  # <- MOE004
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = moe_tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "tp-asks-ep",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=False,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE004
                """,
            ),
        ),
        case(
            "swapped-pair",
            experts(
                """
                if self.ep_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = moe_expert_parallel_all_reduce(x)  # <- MOE004
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=False,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = moe_tensor_model_parallel_all_reduce(x)  # <- MOE004
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            if site.route is Route.HELPER and axis_is_wrong(site, policy):
                asked = "EP" if site.axis == "TP" else "TP"
                told = witness(site, policy)
                yield self.finding(
                    site,
                    f"the helper is asked about the {asked} axis, but `{site.raw.collective}` sums over the "
                    f"{site.axis} axis",
                    context,
                    severity=self.severity if told is not None else Severity.WARNING,
                    witness=told,
                    remedy=f"call `{helper_call(site, policy)}`",
                    fix=plan_call(site, context),
                )
