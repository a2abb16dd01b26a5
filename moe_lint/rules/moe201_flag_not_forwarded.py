from __future__ import annotations

from collections.abc import Iterable

from moe_lint.callers import Edge
from moe_lint.formula import Atom
from moe_lint.index import ProjectIndex
from moe_lint.model import Finding, FixPlan
from moe_lint.profile import Flag
from moe_lint.rules._cases import (
    ASK,
    BARE,
    CALL,
    FUSION_ONLY,
    LINEAR,
    ROUTED,
    SETTLE,
    block,
    experts,
    layer_case,
    method,
)
from moe_lint.rules._layers import absorbs, call_finding, callee_name, launch, place, runs_in_spite_of
from moe_lint.rules._plumbing import parameter_for, plan_keywords
from moe_lint.rules.base import Context, Rule


class FlagNotForwarded(Rule):
    """A layer-context flag is known at a call and is not handed on, and the callee reduces.

    The decoder layer asks its communicator whether somebody downstream will sum ("reduce-scatter after this block",
    "fuse the sum with the next layer's norm"). The answer must reach the reduction. A call on the way that leaves it
    out makes the block reduce although the communicator does, too: every token is scaled by the group size.

    Instead of

        use_reduce_scatter = self.layer_communicator.should_use_reduce_scatter(forward_batch)
        hidden_states = self.mlp(hidden_states)

    hand it down:

        hidden_states = self.mlp(hidden_states, use_reduce_scatter=use_reduce_scatter)

    The flag counts as handed on when an argument depends on it, or when it is published around the call
    (`with get_forward().scoped(…)`). A callee that never reduces (`forward_deepep`, whose combine has already summed)
    needs no flag and is not reported, nor is a call that runs only where the flag is not set.

    The fix passes the flag by keyword when the callee has the parameter; it is corrective. A callee that lacks the
    parameter has to get it, and that is left to you.
    """

    code = "MOE201"
    name = "flag-not-forwarded"
    VALID = (
        layer_case("forwarded", block(experts(ROUTED)), layer=ASK + CALL + SETTLE),
        layer_case(
            "callee-does-not-reduce",
            block(
                """
                def forward(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):
                    return self.forward_deepep(x)

                def forward_deepep(self, x):
                    return self.experts(x)
                """
            ),
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "only-where-the-flag-is-not-set",
            block(experts(BARE, parameters="x")),
            layer=ASK
            + """
if not should_allreduce_fusion and not use_reduce_scatter:
    x = self.mlp(x)
"""
            + SETTLE,
        ),
        layer_case(
            "under-another-name-and-handed-on",
            block(experts(ROUTED)),
            block(
                "def forward(self, x, fuse, scatter):\n    return self.inner(x, fuse, use_reduce_scatter=scatter)",
                name="Outer",
                init="self.inner = Block(config)",
            ),
            build="self.mlp = Outer(config)",
            layer=ASK + CALL + SETTLE,
        ),
    )
    INVALID = (
        layer_case(
            "keyword-left-out",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion=should_allreduce_fusion)  # <- MOE201" + SETTLE,
        ),
        layer_case(
            "inside-the-block",
            block(
                experts(
                    "if self.on_cpu:\n    return self.forward_cpu(x, should_allreduce_fusion)  # <- MOE201\n" + ROUTED,
                ),
                experts(FUSION_ONLY, "forward_cpu", "x, should_allreduce_fusion=False"),
            ),
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "under-another-name",
            block(experts(ROUTED)),
            block(
                "def forward(self, x, fuse, scatter):\n    return self.inner(x, fuse)  # <- MOE201",
                name="Outer",
                init="self.inner = Block(config)",
            ),
            build="self.mlp = Outer(config)",
            layer=ASK + CALL + SETTLE,
        ),
        layer_case(
            "dense-block",
            block(experts(ROUTED)),
            LINEAR,
            block(
                method("x = self.down_proj(x)", parameters="x"), name="Dense", init="self.down_proj = Linear(config)"
            ),
            build="""
            if config.is_sparse:
                self.mlp = Block(config)
            else:
                self.dense = Dense(config)
            """,
            layer=ASK
            + """
if self.is_sparse:
    x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)
else:
    x = self.dense(x)  # <- MOE201
    should_allreduce_fusion = False
"""
            + SETTLE,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        profile = context.index.profile
        for layer, _, edge in callers.calls:
            lost = [
                (flag, found)
                for flag in profile.flags
                if callers.asked(edge.frame, edge.call, flag.name)
                and not _unread(edge, flag, context)
                and not edge.passes(flag.name)
                and absorbs(callers, layer, edge, flag)
                and (found := runs_in_spite_of(callers, edge, flag.name)) is not None
            ]
            if not lost:
                continue
            spelled = {flag.name: _spelled(edge, flag, context) for flag, _ in lost}
            flag, found = lost[0]
            names = " and ".join(f"`{spelled[flag.name]}`" for flag, _ in lost)
            plural = len(lost) > 1
            fix = _plan(edge, spelled, context.index)
            missing = [spelled[f.name] for f, _ in lost if parameter_for(edge, f.name, context.index) is None]
            held = sorted({text.rpartition(".")[0] for text in missing} - {""})
            if held:
                remedy = f"hand on {' and '.join(f'`{name}`' for name in held)}, which holds the flag"
            elif not missing:
                given = (f"`{parameter_for(edge, f.name, context.index)}={spelled[f.name]}`" for f, _ in lost)
                remedy = f"pass {', '.join(given)}"
            elif context.policy.helper is not None and not context.policy.helper.flags and profile.publishers:
                remedy = f"run the call in the `with …{profile.publishers[0]}({missing[0]}=…)` that publishes the flag"
            else:
                remedy = f"give `{callee_name(edge)}` a parameter `{missing[0]}` that its reduction asks, and pass it"
            yield call_finding(
                self,
                edge.frame,
                edge.call,
                f"{names} {'are' if plural else 'is'} known here and not handed to `{callee_name(edge)}`: its "
                f"all-reduce still runs when {'one of them' if plural else 'it'} is set, and "
                f"{flag.absorber} sums again, which scales the output by the group size"
                f"{launch(context, Atom(flag.name), found)}",
                remedy=remedy,
                related=(place(found),),
                fix=fix,
            )


def _spelled(edge: Edge, flag: Flag, context: Context) -> str:
    """What the flag is called where the call is."""
    return dict(edge.call.known).get(flag.name) or context.callers.renamed(edge.frame, flag.name) or flag.name


def _plan(edge: Edge, spelled: dict[str, str], index: ProjectIndex) -> FixPlan | None:
    taken = {b.parameter for b in edge.bound}
    added = [(parameter_for(edge, flag, index), text) for flag, text in spelled.items()]
    if any(parameter is None or parameter in taken for parameter, _ in added):
        return None
    return plan_keywords(
        edge, (), tuple((p, text) for p, text in added if p is not None), "the reduction learns of the flag"
    )


def _unread(edge: Edge, flag: Flag, context: Context) -> bool:
    """Whether the flag is a parameter that the calling function never reads: that is MOE205, at its `def`."""
    conduct = context.callers.conduct(edge.frame.function)
    spelled = dict(edge.call.known).get(flag.name, flag.name)
    return conduct is not None and spelled in conduct.params and spelled not in conduct.reads
