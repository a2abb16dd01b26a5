from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Route
from moe_lint.rules._calls import forgotten_flags
from moe_lint.rules._cases import ROUTED, case, experts
from moe_lint.rules._planning import plan_call
from moe_lint.rules._wording import helper_call, named, witness
from moe_lint.rules.base import Context, Rule


class ForgottenFlag(Rule):
    """A layer-context flag is in scope and is not passed to the helper.

    The flags default to False, so a forgotten keyword is silent: the helper never learns that the layer around the
    block reduces, and both do.

    Instead of

        def forward_normal(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):
            ...
            if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                is_tp_path=True, use_reduce_scatter=use_reduce_scatter
            ):

    pass every flag that the function has:

            if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                is_tp_path=True,
                use_reduce_scatter=use_reduce_scatter,
                should_allreduce_fusion=should_allreduce_fusion,
            ):

    The fix adds the keyword; it is corrective. A function without the flag has nothing to pass and is not reported.
    """

    code = "MOE005"
    name = "forgotten-flag"
    VALID = (
        case(
            "all-flags",
            experts(
                ROUTED,
            ),
        ),
        case(
            "flag-not-in-scope",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True, use_reduce_scatter=use_reduce_scatter
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                parameters="x, use_reduce_scatter=False",
            ),
        ),
        case(
            "no-flag-in-scope",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                parameters="x",
            ),
        ),
    )
    INVALID = (
        case(
            "one-of-two",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True, use_reduce_scatter=use_reduce_scatter
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE005
                """,
            ),
        ),
        case(
            "both",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE005
                """,
            ),
        ),
        case(
            "one-half-of-a-pair",
            experts(
                """
                if self.ep_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=False):
                    x = moe_expert_parallel_all_reduce(x)  # <- MOE005
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = moe_tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            flags = forgotten_flags(site, policy) if site.route is Route.HELPER else ()
            if flags:
                yield self.finding(
                    site,
                    f"{named(flags)} {'is' if len(flags) == 1 else 'are'} in scope, but the helper is not told",
                    context,
                    witness=witness(site, policy),
                    remedy=f"call `{helper_call(site, policy)}`",
                    fix=plan_call(site, context),
                )
