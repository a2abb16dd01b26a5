from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Related, Route
from moe_lint.rules._cases import PAIR, case, experts
from moe_lint.rules._planning import plan
from moe_lint.rules._wording import named, witness
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site


class AxisDrift(Rule):
    """The EP and the TP reduction of one tensor are skipped for different reasons.

    A block that splits its experts over EP and MoE-TP reduces one tensor twice, over one group each. Whoever absorbs
    the sum downstream sums over both, so both guards must skip together, except where the helper itself tells the
    axes apart. A flag that one of the pair honours and the other forgets is summed twice over that axis: qwen3_moe
    shipped such a pair, with outputs scaled by the EP size.

    Instead of

        if self.ep_size > 1 and not should_allreduce_fusion:
            x = moe_expert_parallel_all_reduce(x)
        if self.tp_size > 1 and not should_allreduce_fusion and not use_reduce_scatter:
            x = moe_tensor_model_parallel_all_reduce(x)

    ask the helper in both, with the axis of each. Reported at the reduction that lacks the reason. The rewrite is that
    of the rule that reports the guard itself (MOE001, MOE005).
    """

    code = "MOE101"
    name = "axis-drift"
    VALID = (
        case(
            "same-reasons",
            experts(
                """
                if self.ep_size > 1 and not should_allreduce_fusion and not use_reduce_scatter:
                    x = moe_expert_parallel_all_reduce(x)
                if self.tp_size > 1 and not use_reduce_scatter and not should_allreduce_fusion:
                    x = moe_tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "helper-in-both",
            experts(
                PAIR,
            ),
        ),
        case(
            "reason-of-one-axis-only",
            experts(
                """
                if self.ep_size > 1 and not should_allreduce_fusion:
                    x = moe_expert_parallel_all_reduce(x)
                if not should_allreduce_fusion and not should_use_flashinfer_cutlass_moe_fp4_allgather():
                    x = moe_tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
    )
    INVALID = (
        case(
            "ep-forgets",
            experts(
                """
                if self.ep_size > 1 and not should_allreduce_fusion:
                    x = moe_expert_parallel_all_reduce(x)  # <- MOE101
                if self.tp_size > 1 and not should_allreduce_fusion and not use_reduce_scatter:
                    x = moe_tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "tp-forgets",
            experts(
                """
                if self.ep_size > 1 and not should_allreduce_fusion and not should_use_dp_reduce_scatterv():
                    x = moe_expert_parallel_all_reduce(x)
                if self.tp_size > 1 and not should_allreduce_fusion:
                    x = moe_tensor_model_parallel_all_reduce(x)  # <- MOE101
                """,
            ),
        ),
        case(
            "each-forgets-another",
            experts(
                """
                if self.ep_size > 1 and not should_allreduce_fusion:
                    x = moe_expert_parallel_all_reduce(x)  # <- MOE101
                if self.tp_size > 1 and not use_reduce_scatter:
                    x = moe_tensor_model_parallel_all_reduce(x)  # <- MOE101
                """,
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for group in context.groups():
            for site in group:
                for twin in group:
                    if twin.raw.function == site.raw.function and {site.axis, twin.axis} == {"EP", "TP"}:
                        yield from self._compare(site, twin, context)

    def _compare(self, site: Site, twin: Site, context: Context) -> Iterable[Finding]:
        if Route.NONE in (site.route, twin.route):
            return
        both = {reason.text for reason in context.policy.reasons("TP")}
        both &= {reason.text for reason in context.policy.reasons("EP")}
        lacking = tuple(r for r in site.missing if r in both and r not in twin.missing)
        if lacking:
            yield self.finding(
                site,
                f"the {site.axis} reduction does not skip for {named(lacking)}, as the {twin.axis} reduction on line "
                f"{twin.raw.span.line} does",
                context,
                witness=witness(site, context.policy),
                remedy="guard both with the helper, each with its own axis",
                fix=plan(site, context),
                related=(Related(twin.path, twin.raw.span.line, f"the {twin.axis} reduction"),),
            )
