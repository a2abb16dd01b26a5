from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Relation
from moe_lint.model import Finding, Route, Severity
from moe_lint.rules._cases import BARE, PAIR, ROUTED, case, experts, method
from moe_lint.rules._planning import held_by_name, plan_guard
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

    The fix replaces only the skip part of a condition that decides about the reduction alone; where other code hangs on
    it, the helper is asked just around the reduction. It is safe when both decide alike in every state, and
    corrective when the guard only forgot reasons; if the guard skips where the helper would not, it needs
    `--unsafe-fixes`.
    """

    code = "MOE001"
    name = "hand-written-guard"
    VALID = (
        case(
            "helper",
            experts(
                ROUTED,
            ),
        ),
        case(
            "redundant-atom-beside-the-helper",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
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
        case(
            "ownership",
            experts(
                """
                if self.reduce_results:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "helper-in-an-early-return",
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
            "helper-in-a-local",
            experts(
                """
                skip = should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                )
                if self.tp_size > 1 and not skip:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "not-the-experts",
            method(
                """
                x = self.down_proj(x)
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "size-only",
            experts(
                BARE,
            ),
            absorber=False,
        ),
    )
    INVALID = (
        case(
            "one-reason",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
        ),
        case(
            "reordered-atoms",
            experts(
                """
                if (
                    not should_use_flashinfer_cutlass_moe_fp4_allgather()
                    and not should_use_dp_reduce_scatterv()
                    and not use_reduce_scatter
                    and self.tp_size > 1
                    and not should_allreduce_fusion
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
        ),
        case(
            "early-return",
            experts(
                """
                if should_allreduce_fusion:
                    return x
                x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
        ),
        case(
            "ternary",
            experts(
                "x = x if use_reduce_scatter else tensor_model_parallel_all_reduce(x)  # <- MOE001",
            ),
        ),
        case(
            "guard-in-a-local",
            experts(
                """
                reduce = self.tp_size > 1 and not should_allreduce_fusion
                if reduce:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
        ),
        case(
            "nested-ifs",
            experts(
                """
                if self.tp_size > 1:
                    if not should_allreduce_fusion:
                        x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
        ),
        case(
            "positive-atom",
            experts(
                """
                if get_moe_a2a_backend().is_none() and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
        ),
        case(
            "no-absorber",
            experts(
                """
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE001
                """,
            ),
            absorber=False,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            helper = policy.helper
            if site.route is not Route.INLINE or helper is None:
                continue
            message = f"hand-written guard bypasses `{helper.name}`: "
            held = tuple(sorted(held_by_name(site, policy)))
            if site.relation is Relation.EQUAL and held:  # judged as if what is passed were what is published
                message += f"the same decision only while {named(held)} {_is(held)} passed as the layer publishes"
            elif site.relation is Relation.EQUAL:
                message += "the same decision today, a copy that can drift"
            elif site.missing:
                message += f"it still reduces for {named(site.missing)}, where the helper skips"
            elif site.relation is Relation.STRONGER:
                message += "it skips in states in which the helper reduces"
            else:
                message += "it decides differently"
            beside = f" beside {named(held)}, which it is not told" if held else ""
            yield self.finding(
                site,
                message,
                context,
                severity=Severity.WARNING if site.relation is Relation.EQUAL else None,
                witness=witness(site, policy),
                remedy=f"guard it with `not {helper_call(site, policy)}`{beside}",
                fix=plan_guard(site, context),
            )


def _is(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"
