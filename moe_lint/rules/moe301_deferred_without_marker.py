from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Atom, atom_set, conj
from moe_lint.model import Finding, Related
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, block, experts, layer_case, method
from moe_lint.rules._layers import absorbs, block_sums, call_finding, callee_name, has_experts, launch
from moe_lint.rules.base import Context, Rule

_CALL = "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)"
_POST = "\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)\n"


class DeferredWithoutMarker(Rule):
    """A block leaves its sum to the next layer, and nobody marks the tensor as owing it.

    With `should_allreduce_fusion` the block returns its partial sum, and the next layer's communicator sums while it
    adds the residual. It does so only for a tensor that carries the marker (`_sglang_needs_allreduce_fusion`). A layer
    that passes the flag on and never sets the marker loses the sum: each rank goes on with its own partial sum, no
    error is raised, and the text turns to noise.

    Instead of

        hidden_states = self.mlp(hidden_states, should_allreduce_fusion, use_reduce_scatter)
        hidden_states, residual = self.layer_communicator.postprocess_layer(hidden_states, residual, forward_batch)

    mark the tensor where the flag is set, and leave the rest to the next layer:

        if should_allreduce_fusion:
            hidden_states._sglang_needs_allreduce_fusion = True
        else:
            hidden_states, residual = self.layer_communicator.postprocess_layer(...)

    The marker may be set in a function that the layer calls. Reported at the call of the block. There is no fix: which
    of the statements that follow still apply is for you to say.
    """

    code = "MOE301"
    name = "deferred-without-marker"
    VALID = (
        layer_case("marked", block(experts(ROUTED)), layer=ASK + _CALL + SETTLE),
        layer_case(
            "marked-elsewhere",
            block(experts(ROUTED)),
            """
            def finish(x):
                x._sglang_needs_allreduce_fusion = True
                return x
            """,
            layer=ASK
            + _CALL
            + """
if should_allreduce_fusion:
    x = finish(x)
else:
    x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
""",
        ),
        layer_case(
            "never-deferred",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, False, use_reduce_scatter)" + _POST,
        ),
    )
    INVALID = (
        layer_case("never-marked", block(experts(ROUTED)), layer=ASK + _CALL + "  # <- MOE301" + _POST),
        layer_case(
            "marked-on-another-path",
            block(experts(ROUTED)),
            block(
                method(
                    """
                    if self.tp_size > 1 and not should_allreduce_fusion:
                        x = tensor_model_parallel_all_reduce(x)
                    """,
                    parameters="x, should_allreduce_fusion=False",
                ),
                name="Dense",
                init="self.size = config",
            ),
            build="self.mlp = Block(config)\nself.dense = Dense(config)",
            layer=ASK
            + """
if self.sparse:
    x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)  # <- MOE301
else:
    x = self.dense(x, should_allreduce_fusion)
if should_allreduce_fusion and not self.sparse:
    x._sglang_needs_allreduce_fusion = True
else:
    x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
""",
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        markers = context.index.profile.markers
        if not markers:
            return  # nobody in this tree waits for a mark: it hands sums on in another way
        told: set[tuple[str, int, str]] = set()
        # where a call may reach several blocks, the one with experts explains it best
        for layer, start, edge in sorted(callers.calls, key=lambda item: not has_experts(callers, item[2])):
            for flag in context.index.profile.flags:
                key = (edge.frame.path, edge.call.span.line, flag.name)
                if not flag.last or start != edge.frame or edge.built is None or key in told:
                    continue
                handed = {**dict(edge.target.context), **dict(edge.target.values)}.get(flag.name)
                if handed is None or flag.name not in atom_set(handed):
                    continue
                deferred = [
                    s
                    for s in block_sums(callers, edge)
                    if flag.name in atom_set(s.condition) and not callers.possible(conj((s.condition, Atom(flag.name))))
                ]
                if not deferred or absorbs(callers, layer, edge, flag):
                    continue
                told.add(key)
                found = deferred[0]
                yield call_finding(
                    self,
                    edge.frame,
                    edge.call,
                    f"`{callee_name(edge)}` leaves its sum to the next layer when `{flag.name}` is set, but "
                    f"`{layer.owner.name}` never sets `{markers[0]}` on what it returns: nobody sums, and each rank "
                    f"keeps its own partial sum{launch(context, Atom(flag.name), found)}",
                    remedy=f"where the flag is set, set `{markers[0]} = True` on the output instead of finishing the "
                    "layer; or do not pass the flag",
                    related=(
                        Related(found.site.path, found.site.raw.span.line, "this reduction is skipped for the flag"),
                    ),
                )
