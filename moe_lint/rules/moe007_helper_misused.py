from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Relation
from moe_lint.model import Finding, Route
from moe_lint.rules._calls import axis_is_wrong, forgotten_flags, literal_flags
from moe_lint.rules._cases import PAIR, ROUTED, case, experts
from moe_lint.rules._planning import plan_guard
from moe_lint.rules._wording import helper_call, witness
from moe_lint.rules.base import Context, Rule


class HelperMisused(Rule):
    """The guard asks the helper, and does not do what it answers.

    A lost `not`, an `or` for an `and`, a flag that runs the reduction in spite of the answer: the name of the helper
    is there, the decision is not its. The guard then reduces where the helper skips (summed twice), or skips where it
    would reduce (each rank keeps its own partial sum), or both.

    Instead of

        if self.tp_size > 1 and should_skip_post_experts_all_reduce(is_tp_path=True):
            x = tensor_model_parallel_all_reduce(x)

    write

        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = tensor_model_parallel_all_reduce(x)

    A further condition joined by `and` is left alone, and so is asking the helper's halves one by one. The fix
    rewrites the condition; it needs `--unsafe-fixes` wherever it would bring back a reduction.
    """

    code = "MOE007"
    name = "helper-misused"
    VALID = (
        case(
            "helper",
            experts(
                ROUTED,
            ),
        ),
        case(
            "redundant-atom",
            experts(
                """
                if self.tp_size > 1 and not should_allreduce_fusion and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "early-return",
            experts(
                """
                if should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    return x
                x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "ep-and-tp-pair",
            experts(
                PAIR,
            ),
        ),
    )
    INVALID = (
        case(
            "lost-not",
            experts(
                """
                if self.tp_size > 1 and should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE007
                """,
            ),
        ),
        case(
            "or-for-and",
            experts(
                """
                if use_reduce_scatter or not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE007
                """,
            ),
        ),
        case(
            "early-return-the-wrong-way",
            experts(
                """
                if not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    return x
                x = tensor_model_parallel_all_reduce(x)  # <- MOE007
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            if site.route is not Route.HELPER or site.relation is Relation.EQUAL or not policy.helper_calls(site.guard):
                continue
            if axis_is_wrong(site, policy) or forgotten_flags(site, policy) or literal_flags(site, policy):
                continue  # MOE004, MOE005 and MOE006 name the cause
            yield self.finding(
                site,
                "the guard calls the helper, but does not follow its answer",
                context,
                witness=witness(site, policy),
                remedy=f"guard it with `not {helper_call(site, policy)}`",
                fix=plan_guard(site, context),
            )
