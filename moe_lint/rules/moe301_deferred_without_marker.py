from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.callers import Edge
from moe_lint.facts import CallResult, Marked, Origins
from moe_lint.formula import Atom, atom_set, conj
from moe_lint.model import Finding, Related, Span
from moe_lint.rules._cases import ASK, CALL, FUSION_ONLY, POST, ROUTED, SETTLE, block, experts, layer_case, method
from moe_lint.rules._layers import absorbs, block_sums, call_finding, callee_name, has_experts, launch
from moe_lint.rules.base import Context, Rule

_MARK = "if should_allreduce_fusion:\n    x._sglang_needs_allreduce_fusion = True"


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

    The mark belongs to the tensor: a clone of it, or what a later step computes from it, has none. The marker may be
    set in a function that the layer calls. Reported at the call of the block, or at a mark that does not leave. There
    is no fix: which of the statements that follow still apply is for you to say.
    """

    code = "MOE301"
    name = "deferred-without-marker"
    VALID = (
        layer_case("marked", block(experts(ROUTED)), layer=ASK + CALL + SETTLE),
        layer_case(
            "marked-elsewhere",
            block(experts(ROUTED)),
            """
            def finish(x):
                x._sglang_needs_allreduce_fusion = True
                return x
            """,
            layer=ASK
            + CALL
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
            layer=ASK + "x = self.mlp(x, False, use_reduce_scatter)" + POST,
        ),
        layer_case(
            "finished-where-it-is-not-marked",
            block(experts(ROUTED)),
            layer=ASK + CALL + f"\n{_MARK}\nif not should_allreduce_fusion:" + POST.replace("\nx", "\n    x"),
        ),
        layer_case(
            "under-another-name",
            block(experts(ROUTED)),
            layer=ASK + CALL + f"\ny = x\n{_MARK.replace(' x._', ' y._')}\nreturn y, residual",
        ),
        layer_case(
            "under-a-condition-of-the-layer",
            block(experts(ROUTED)),
            layer=ASK + CALL + SETTLE.replace("if should", "if not self.apart and should"),
        ),
    )
    INVALID = (
        layer_case(
            "marked-under-another-flag",
            block(experts(ROUTED)),
            layer=ASK + CALL + "  # <- MOE301" + SETTLE.replace("if should_allreduce_fusion", "if use_reduce_scatter"),
        ),
        layer_case(
            "cloned-behind-the-mark",
            block(experts(ROUTED)),
            layer=ASK + CALL + f"\n{_MARK}  # <- MOE301\n    x = x.clone()",
        ),
        layer_case(
            "finished-behind-the-mark",
            block(experts(ROUTED)),
            layer=ASK + CALL + f"\n{_MARK}  # <- MOE301" + POST,
        ),
        layer_case(
            "on-another-tensor",
            block(experts(ROUTED)),
            layer=ASK + CALL + SETTLE.replace(" x._", " residual._").replace("= True", "= True  # <- MOE301"),
        ),
        layer_case("never-marked", block(experts(ROUTED)), layer=ASK + CALL + "  # <- MOE301" + POST),
        layer_case(
            "marked-on-another-path",
            block(experts(ROUTED)),
            block(
                method(
                    FUSION_ONLY,
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
                if not deferred:
                    continue
                found = deferred[0]
                if absorbs(callers, layer, edge, flag):
                    for span in _left_behind(edge, context):
                        told.add(key)
                        yield call_finding(
                            self,
                            edge.frame,
                            edge.call,
                            f"`{callee_name(edge)}` leaves its sum to the next layer when `{flag.name}` is set, but "
                            f"what `{layer.owner.name}` returns of it is not the tensor that is marked here: nobody "
                            f"sums, and each rank keeps its own partial sum{launch(context, Atom(flag.name), found)}",
                            span=span,
                            remedy="mark what is returned, and let nothing be computed from it behind the mark",
                            related=(Related(edge.frame.path, edge.call.span.line, "its output is to be marked"),),
                        )
                    continue
                told.add(key)
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


def _left_behind(edge: Edge, context: Context) -> Iterator[Span]:
    """The marks of a layer's function that no `return` behind them hands on with what the block returned."""
    facts = context.index.facts(edge.frame.path)
    paths = facts.paths(edge.frame.function.name) if facts is not None else None
    for span, condition in paths.marks if paths is not None else ():
        behind = [out for out in paths.exits if span < out.span] if paths is not None else []
        callee = edge.call.callee
        elements = [
            origins
            for out in behind
            if context.callers.possible(conj((condition, out.condition)))
            for origins in out.elements
        ]
        itself = [o for o in elements if any(isinstance(one, CallResult) and one.callee == callee for one in o)]
        outputs = itself or [origins for origins in elements if _comes_from(origins, callee)]
        if outputs and not any(Marked(span) in origins for origins in outputs):
            yield span


def _comes_from(origins: Origins, callee: str) -> bool:
    return any(
        isinstance(origin, CallResult) and (origin.callee == callee or _comes_from(origin.inputs, callee))
        for origin in origins
    )
