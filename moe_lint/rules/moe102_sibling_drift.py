from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Related, Route
from moe_lint.rules._cases import case, experts, method
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
    VALID = (
        case(
            "same-reasons",
            experts(
                """
                if not should_allreduce_fusion and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            experts(
                """
                if not use_reduce_scatter and not should_allreduce_fusion:
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_cpu",
            ),
        ),
        case(
            "helper-in-both",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_cpu",
            ),
        ),
        case(
            "deepep-does-not-reduce",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            method(
                "x = self.experts.combine(x)",
                name="forward_deepep",
                parameters="x",
            ),
        ),
    )
    INVALID = (
        case(
            "cpu-forgets",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            experts(
                """
                if not should_allreduce_fusion:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE102
                """,
                name="forward_cpu",
            ),
        ),
        case(
            "subset-by-hand",
            experts(
                """
                if not should_allreduce_fusion and not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_normal",
            ),
            experts(
                """
                if not use_reduce_scatter:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE102
                """,
                name="forward_dual_stream",
            ),
        ),
        case(
            "size-only-sibling",
            experts(
                """
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE102
                """,
                name="forward_normal",
            ),
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True,
                    use_reduce_scatter=use_reduce_scatter,
                    should_allreduce_fusion=should_allreduce_fusion,
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                name="forward_cpu",
            ),
        ),
    )

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
            f"`{site.method}` still reduces for {named(lacking)}, but its sibling `{other.method}` skips there",
            context,
            witness=witness(site, context.policy),
            remedy="guard both with the helper",
            fix=plan(site, context),
            related=(Related(other.path, other.raw.span.line, f"the reduction in `{other.method}`"),),
        )


def _is_forward(site: Site) -> bool:
    return site.method.lstrip("_").startswith("forward")
