from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from moe_lint.callers import Edge, Layer, Sum
from moe_lint.formula import TRUE, Atom, Formula, conj, disj, negate
from moe_lint.model import Finding, Span
from moe_lint.profile import Flag
from moe_lint.rules._cases import ASK, CALL, LINEAR, POST, ROUTED, SETTLE, block, experts, layer_case, method
from moe_lint.rules._layers import block_sums, call_finding, callee_name, launch, place
from moe_lint.rules.base import Case, Context, Rule


def _dense(name: str, body: str) -> Case:
    dense = block(method(body), name="Dense", init="self.down_proj = Linear(config)")
    return layer_case(name, LINEAR, dense, build="self.mlp = Dense(config)", layer=ASK + CALL + SETTLE)


class FlagChanged(Rule):
    """A layer asks its communicator for a flag and hands its block another answer.

    What `should_use_reduce_scatter` answers, the communicator does: it does not learn what the layer makes of it on
    the way to the block. A block that is told no while the communicator sums reduces, too, and every token is scaled
    by the group size. A block that is told yes while the communicator does nothing leaves its sum to nobody.

    Instead of

        use_reduce_scatter = self.layer_communicator.should_use_reduce_scatter(forward_batch)
        hidden_states = self.mlp(hidden_states, use_reduce_scatter=use_reduce_scatter and self.is_sparse)

    hand down what it answered:

        hidden_states = self.mlp(hidden_states, use_reduce_scatter=use_reduce_scatter)

    A flag whose sum is deferred by a mark on the tensor may be narrowed, as long as the mark is: the next layer sums
    what is marked. Two flags may be handed on as one. A constant where the layer sums by itself is MOE006's, and a
    flag that is not handed on at all MOE201's. Reported at the call of the block; where a block without experts hands
    the flag to a layer that sums for it, at the call of that layer. There is no fix.
    """

    code = "MOE206"
    name = "flag-changed"
    VALID = (
        _dense("dense-block", "x = self.down_proj(x, skip_all_reduce=should_allreduce_fusion or use_reduce_scatter)"),
        layer_case("as-answered", block(experts(ROUTED)), layer=ASK + CALL + SETTLE),
        layer_case(
            "two-as-one",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion or use_reduce_scatter, False)" + SETTLE,
        ),
        layer_case(
            "narrowed-with-its-mark",
            block(experts(ROUTED)),
            layer=ASK + "should_allreduce_fusion = should_allreduce_fusion and self.sparse\n" + CALL + SETTLE,
        ),
        layer_case(
            "not-asked",
            block(experts(ROUTED)),
            layer="x = self.mlp(x, use_reduce_scatter=self.scatters)" + POST,
        ),
        layer_case(
            "where-it-is-not-set",
            block(experts(ROUTED)),
            layer=ASK + f"if use_reduce_scatter:\n    {CALL}\nelse:\n    {CALL}" + SETTLE,
        ),
    )
    INVALID = (
        _dense(
            "dense-block-that-asks-for-both",
            "x = self.down_proj(x, skip_all_reduce=should_allreduce_fusion and use_reduce_scatter)  # <- MOE206",
        ),
        layer_case(
            "narrowed",
            block(experts(ROUTED)),
            layer=ASK + CALL.replace("scatter)", "scatter and self.sparse)  # <- MOE206") + SETTLE,
        ),
        layer_case(
            "inverted",
            block(experts(ROUTED)),
            layer=ASK + CALL.replace("use_", "not use_") + "  # <- MOE206" + SETTLE,
        ),
        layer_case(
            "only-where-both-are-set",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, False, should_allreduce_fusion and use_reduce_scatter)  # <- MOE206" + SETTLE,
        ),
        layer_case(
            "a-constant",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, True)  # <- MOE206" + SETTLE,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        told: set[tuple[str, Span]] = set()
        for layer, start, edge in context.callers.calls:
            if start != edge.frame or edge.built is None or any(bound.passed.hides for bound in edge.bound):
                continue
            for flag in context.index.profile.flags:
                handed = {**dict(edge.target.context), **dict(edge.target.values)}.get(flag.name)
                if handed is None or not _answered(edge, flag, context):
                    continue
                found = _doubled(layer, edge, flag, handed, context) or _lost(edge, flag, handed, context)
                # handed as it was answered, it is lost in the block: at the call that brings the reduction about
                at = found[0].route[-1] if found is not None and handed == Atom(flag.name) else edge
                if found is not None and (at.frame.path, at.call.span) not in told:
                    told |= {(edge.frame.path, edge.call.span), (at.frame.path, at.call.span)}
                    yield self._told(edge, at, flag, handed, *found, context)

    def _told(
        self, edge: Edge, at: Edge, flag: Flag, handed: Formula, found: Sum, when: Formula, context: Context
    ) -> Finding:
        spelled = dict(edge.call.known).get(flag.name, flag.name)
        if context.callers.possible(conj((when, Atom(flag.name))), unknown=False):
            what = "its all-reduce runs"
            consequence = f"although {flag.absorber} sums again, which scales the output by the group size"
        else:
            what = "it leaves its sum"
            consequence = "although nobody makes it, and each rank keeps its own partial sum"
        given = f"is handed `{handed}` for `{spelled}`, which is not what the communicator answers: {what}"
        if at is not edge:
            given = f"is not told of `{flag.name}` whenever it is set: {what}"
        return call_finding(
            self,
            at.frame,
            at.call,
            f"`{callee_name(at)}` {given} {consequence}{launch(context, when, found)}",
            remedy=f"hand down `{spelled}` as it was answered",
            related=(place(found),),
        )


def _answered(edge: Edge, flag: Flag, context: Context) -> bool:
    """Whether a communicator has answered for the flag: a layer that works it out by itself is none's word."""
    conduct = context.callers.conduct(edge.frame.function)
    own = conduct is not None and flag.name in conduct.decided
    return not own and context.callers.asked(edge.frame, edge.call, flag.name)


def _doubled(layer: Layer, edge: Edge, flag: Flag, handed: Formula, context: Context) -> tuple[Sum, Formula] | None:
    """A reduction that runs although the flag is set, because the block is told that it is not."""
    callers = context.callers
    if not edge.passes(flag.name):
        return None  # MOE201
    absorbed = disj(callers.marks(layer)) if flag.last else Atom(flag.name)
    for found in block_sums(callers, edge):
        # after experts, what a guard makes of the flag is told there (MOE001, MOE007)
        changed = negate(handed) if found.site.post_experts else TRUE
        when = conj((found.condition, Atom(flag.name), absorbed, changed))
        if callers.possible(when, unknown=False):
            return found, when
    return None


def _lost(edge: Edge, flag: Flag, handed: Formula, context: Context) -> tuple[Sum, Formula] | None:
    """A reduction that is left out although no flag is set, because the block is told that one is."""
    callers = context.callers
    own = any(s.path == edge.frame.path and s.raw.function == edge.frame.function.name for s in context.sites)
    if flag.last or own:
        return None  # who defers a sum marks it; a layer that sums by itself may tell its block what it likes
    unset = conj(negate(Atom(one.name)) for one in context.index.profile.flags)
    when = conj((edge.target.holds, handed, unset))
    if not callers.possible(when, unknown=False):
        return None
    answered = [(name, Atom(name) if name == flag.name else value) for name, value in edge.target.values]
    published = [(name, Atom(name) if name == flag.name else value) for name, value in edge.target.context]
    target = replace(edge.target, values=tuple(answered), context=tuple(published))
    for found in block_sums(callers, replace(edge, target=target)):
        if not callers.possible(conj((found.condition, Atom(flag.name)))):
            return found, when
    return None
