from __future__ import annotations

from collections.abc import Iterable

from moe_lint.absorbers import absorbers_of
from moe_lint.formula import Relation
from moe_lint.model import Finding, Route
from moe_lint.rules._cases import BARE, ROUTED, block, case, experts, method, model, tree
from moe_lint.rules._planning import plan_guard
from moe_lint.rules._wording import helper_call, witness
from moe_lint.rules.base import Context, Rule
from moe_lint.rules.moe306_reduced_by_experts_too import reduces_what_is_whole
from moe_lint.rules.moe309_reduced_twice import one_too_many

#: A layer that derives from the model's own, and has a communicator.
_DERIVED = """

class DerivedLayer(DecoderLayer):
    def __init__(self, config):
        {setup}
        self.layer_communicator = LayerCommunicator(config)
"""
#: A layer that derives from the model's own, and holds another block.
_PLAIN = """

class PlainLayer(DecoderLayer):
    def __init__(self, config):
        {setup}
        self.mlp = OtherBlock(config)
"""


class UnguardedReduction(Rule):
    """An all-reduce after the experts runs whatever the layer around it absorbs.

    The decoder layer that builds this block has an absorber (a `LayerCommunicator`): in some configurations it fuses
    the sum with the next residual add, or replaces it by a reduce-scatter. A block that reduces all the same sums
    twice there, and every token is scaled by the group size. With default settings on one machine nothing shows.

    Instead of

        if self.tp_size > 1:
            x = tensor_model_parallel_all_reduce(x)

    ask the helper:

        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = tensor_model_parallel_all_reduce(x)

    The fix is corrective: it stops the reduction in the states in which somebody else sums. It passes the
    layer-context flags, and hands down those that are not in scope: the functions on the way get the parameter, False
    by default, and the layer asks its communicator. Where that cannot be done surely the fix says why. Behind a
    boundary that takes sums by contract the sum itself may be the mistake: there the fix is unsafe. Blocks without an
    absorber are right as they are and are not reported (see MOE003). Nor is a reduction that has to go whatever its
    guard: of what the experts have summed for themselves (MOE306), or in front of another one (MOE309).
    """

    code = "MOE002"
    name = "unguarded-reduction"
    VALID = (
        case(
            "no-layer-communicator",
            experts(
                BARE,
            ),
            absorber=False,
        ),
        case(
            "helper",
            experts(
                ROUTED,
            ),
        ),
        case(
            "ownership",
            experts(
                """
                if self.tp_size > 1 and self.reduce_results:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        case(
            "not-the-experts",
            method(
                """
                x = self.down_proj(x)
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)
                """,
            ),
        ),
        tree(
            "another-block-in-the-layer-that-absorbs",
            pretend=model(experts(BARE), absorber=False) + _DERIVED.format(setup="self.mlp = OtherBlock(config)"),
        ),
        tree(
            "only-the-base-of-the-layer-absorbs",
            pretend=model(experts(ROUTED))
            + "\n\n"
            + block(experts(BARE), name="OtherBlock")
            + _PLAIN.format(setup="torch.nn.Module.__init__(self)"),
        ),
    )
    INVALID = (
        case(
            "size-only",
            experts(
                """
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE002
                """,
            ),
        ),
        case(
            "no-condition",
            experts(
                "x = tensor_model_parallel_all_reduce(x)  # <- MOE002",
            ),
        ),
        case(
            "no-flag-in-scope",
            experts(
                """
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE002
                """,
                parameters="x",
            ),
        ),
        case(
            "returned-call",
            experts(
                """
                if self.tp_size > 1:
                    return tensor_model_parallel_all_reduce(x)  # <- MOE002
                """,
            ),
        ),
        tree(
            "derived-layer-absorbs",
            pretend=model(experts(BARE.replace("reduce(x)", "reduce(x)  # <- MOE002")), absorber=False)
            + _DERIVED.format(setup="super().__init__(config)"),
        ),
        tree(
            "base-of-the-layer-absorbs",
            pretend=model(experts(ROUTED))
            + "\n\n"
            + block(experts(BARE.replace("reduce(x)", "reduce(x)  # <- MOE002")), name="OtherBlock")
            + _PLAIN.format(setup="DecoderLayer.__init__(self, config)"),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        by_contract = (
            "" if absorbers_of(policy).asked else "leave the sum to the layer boundary; or, if the block owns it, "
        )
        for site in context.judged():
            if site.route is not Route.NONE or not site.absorber or site.relation is Relation.EQUAL:
                continue
            if site.raw.shape == "consumed":
                continue  # the block needs the whole sum itself
            if site in one_too_many(context) or reduces_what_is_whole(site, context):
                continue  # it has to go, whatever its guard: told by the rules about that
            yield self.finding(
                site,
                f"all-reduce after the experts ignores every skip reason, but an absorber surrounds "
                f"`{site.raw.class_name or site.raw.function}`",
                context,
                witness=witness(site, policy),
                remedy=f"{by_contract}guard it with `not {helper_call(site, policy)}`",
                fix=plan_guard(site, context),
            )
