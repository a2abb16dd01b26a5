from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from moe_lint.formula import Relation
from moe_lint.index import Ref
from moe_lint.model import Finding, Related, Route
from moe_lint.rules._calls import literal_flags
from moe_lint.rules._cases import ROUTED, case, experts
from moe_lint.rules._planning import plan_call
from moe_lint.rules._plumbing import constants
from moe_lint.rules._wording import helper_call, witness
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site


class LiteralFlag(Rule):
    """A layer-context flag is passed as a constant.

    The flags are facts about one forward pass: the layer's communicator computes them anew for every batch. A constant
    switches the helper off: `should_allreduce_fusion=True` means that the block never reduces. Whoever passes it has
    to reduce itself, in every state, and usually does so with a guard of its own that knows fewer reasons than the
    helper (step3p5 shipped that pair). A constant False hides a flag that is in scope.

    Instead of

        out = self.moe(x, should_allreduce_fusion=True, use_reduce_scatter=use_reduce_scatter)
        if not should_allreduce_fusion and not use_reduce_scatter:
            out = tensor_model_parallel_all_reduce(out)

    hand the flag down and let the block decide:

        out = self.moe(
            x,
            should_allreduce_fusion=should_allreduce_fusion,
            use_reduce_scatter=use_reduce_scatter,
        )

    A constant for a block whose caller does not reduce by itself is not reported: there the caller's own absorber
    takes the sum. In a helper call, the fix passes the flag that is in scope; a constant at a caller is left to you,
    since the caller's own reduction has to go with it.
    """

    code = "MOE006"
    name = "literal-flag"
    VALID = (
        case(
            "flags-handed-down",
            experts(
                ROUTED,
            ),
            layer="""
            x = self.mlp(
                x,
                should_allreduce_fusion=should_allreduce_fusion,
                use_reduce_scatter=use_reduce_scatter,
            )
            """,
        ),
        case(
            "false-for-a-flag-not-in-scope",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=False
                ):
                    x = tensor_model_parallel_all_reduce(x)
                """,
                parameters="x, use_reduce_scatter=False",
            ),
        ),
        case(
            "caller-does-not-reduce",
            experts(
                ROUTED,
            ),
            layer="x = self.mlp(x, should_allreduce_fusion=True, use_reduce_scatter=use_reduce_scatter)",
        ),
    )
    INVALID = (
        case(
            "true",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=True
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE006
                """,
            ),
        ),
        case(
            "false-hides-a-flag",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=False
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE006
                """,
            ),
        ),
        case(
            "caller-reduces-by-hand",
            experts(
                ROUTED,
            ),
            layer="""
            x = self.mlp(x, should_allreduce_fusion=True, use_reduce_scatter=use_reduce_scatter)  # <- MOE006
            if not should_allreduce_fusion and not use_reduce_scatter:
                x = tensor_model_parallel_all_reduce(x)
            """,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        for site in context.judged():
            literals = literal_flags(site, policy) if site.route is Route.HELPER else ()
            for parameter, value in literals:
                effect = "the reduction never runs" if value else "the flag in scope is ignored"
                yield self.finding(
                    site,
                    f"`{parameter}={value}` is a constant in the helper call: {effect}",
                    context,
                    witness=witness(site, policy),
                    remedy=f"call `{helper_call(site, policy)}`",
                    fix=plan_call(site, context),
                )
            if site.route in (Route.INLINE, Route.NONE) and site.relation is not Relation.EQUAL:
                yield from self._callers(site, context)

    def _callers(self, site: Site, context: Context) -> Iterator[Finding]:
        """Constants passed in the function of a reduction that then decides by hand."""
        flags = context.policy.profile.flag_names
        function = Ref(site.path, re.sub(r"(\.<lambda>)+$", "", site.raw.function))
        for call, argument in constants(function, context):
            yield Finding(
                self.code,
                self.name,
                site.path,
                call.span,
                self.severity,
                self.confidence,
                f"`{argument}=True` switches off the block's own reduction in every state; line "
                f"{site.raw.span.line} runs it by hand, without "
                f"{len(site.missing) or 'some'} of the helper's reasons",
                site.raw.function.rsplit(".", 1)[-1],
                site.raw.class_name,
                site.relation.value if site.relation is not None else None,
                witness(site, context.policy),
                related=(Related(site.path, site.raw.span.line, "the reduction by hand"),),
                remedy=f"pass `{argument}={flags[argument]}` and let the block reduce",
                subject=f"{call.callee}({argument}=True)",
            )
