from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Confidence, Finding, Route, Severity
from moe_lint.rules._cases import BARE, case, experts
from moe_lint.rules.base import Context, Rule

_ROUTED = """
if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
    x = tensor_model_parallel_all_reduce(x)
"""


class HelperWithoutAbsorber(Rule):
    """A reduction asks the central helper in a model in which no layer absorbs the sum.

    The helper says "somebody downstream sums". In a model without a communicator or stage boundary nobody does for
    most of its reasons: where one of them holds (data-parallel attention with as many expert ranks, for one), the sum
    is lost and each rank keeps its own part. A kernel or dispatcher that sums on the way needs no layer, so some
    reasons are right even here; which, is not told from the tree. That is why the rule is off by default.

    Instead of

        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):

    reduce whatever holds, or move the layer to the communicator:

        if self.tp_size > 1:

    There is no fix.
    """

    code = "MOE305"
    name = "helper-without-absorber"
    severity = Severity.WARNING
    confidence = Confidence.LOW
    VALID = (
        case("communicator", experts(_ROUTED, parameters="x")),
        case(
            "no-helper",
            experts(
                BARE,
                parameters="x",
            ),
            absorber=False,
        ),
    )
    INVALID = (
        case("helper", experts(_ROUTED.replace("(x)\n", "(x)  # <- MOE305\n"), parameters="x"), absorber=False),
        case(
            "with-flags",
            experts(
                """
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
                    is_tp_path=True, use_reduce_scatter=use_reduce_scatter
                ):
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE305
                """,
            ),
            absorber=False,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for site in context.judged():
            if site.route is Route.HELPER and site.absorber is False:
                yield self.finding(
                    site,
                    "the helper decides here, but no layer around the block builds an absorber: where it skips, the "
                    "sum may be lost",
                    context,
                    remedy="reduce whatever the helper says, or move the layer to the communicator",
                )
