from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.callers import Built, Callers, Edge, Frame, Layer, Sum
from moe_lint.facts import Call
from moe_lint.formula import Atom
from moe_lint.model import Finding, Related
from moe_lint.profile import Flag
from moe_lint.rules._cases import ASK, BARE, ROUTED, SETTLE, block, experts, layer_case
from moe_lint.rules._layers import block_sums, call_finding, callee_name, launch, place
from moe_lint.rules.base import Context, Rule

_RUN = """
x = self.mlp(x){}
x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
"""


class PermittedButNeverAsked(Rule):
    """A communicator is allowed to reduce-scatter, its layer never asks whether it will, and the block reduces.

    `allow_reduce_scatter=True` is a promise of the model: "my block will leave its sum to you when you say so". The
    communicator then reduce-scatters after the block. A layer that never calls `should_use_reduce_scatter` cannot tell
    its block, so both sum, and every token is scaled by the group size. It looks fine on one machine with defaults,
    and breaks with data-parallel attention.

    Instead of

        self.layer_communicator = LayerCommunicator(..., allow_reduce_scatter=True)
        ...
        hidden_states = self.mlp(hidden_states, forward_batch)

    ask, and hand the answer to the block (or leave the permission out):

        use_reduce_scatter = self.layer_communicator.should_use_reduce_scatter(forward_batch)
        hidden_states = self.mlp(hidden_states, forward_batch, use_reduce_scatter=use_reduce_scatter)

    Reported at the call of the block. There is no fix: the flag may have to pass through several functions.
    """

    code = "MOE204"
    name = "permitted-but-never-asked"
    VALID = (
        layer_case(
            "asked",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE,
        ),
        layer_case(
            "not-permitted", block(experts(BARE)), communicator="LayerCommunicator(config)", layer=_RUN.format("")
        ),
        layer_case(
            "a-communicator-that-the-layer-does-not-run",
            block(experts(BARE, parameters="x")),
            layer="x = self.mlp(x)\nx, residual = self.mix(x, residual)",
        ),
        layer_case(
            "block-does-not-reduce", block("def forward(self, x):\n    return self.experts(x)"), layer=_RUN.format("")
        ),
    )
    INVALID = (
        layer_case("bare", block(experts(BARE, parameters="x")), layer=_RUN.format("  # <- MOE204")),
        layer_case("flags-at-their-defaults", block(experts(ROUTED)), layer=_RUN.format("  # <- MOE204")),
        layer_case(
            "only-the-other-flag-asked",
            block(experts(ROUTED)),
            layer=ASK.partition("use_reduce_scatter")[0]
            + "x = self.mlp(x, should_allreduce_fusion)  # <- MOE204"
            + SETTLE,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        for flag in context.index.profile.flags:
            told: set[tuple[str, int]] = set()
            for layer in callers.layers if flag.permit and flag.predicate else ():
                permitted = _permitted(callers, layer, flag)
                if permitted is None or _asks(callers, layer, flag):
                    continue
                for edge, found in _blocks(callers, layer, flag):
                    if (edge.frame.path, edge.call.span.line) in told:
                        continue
                    told.add((edge.frame.path, edge.call.span.line))
                    yield call_finding(
                        self,
                        edge.frame,
                        edge.call,
                        f"`{permitted.owner.name}({flag.permit}=True)` (line {permitted.call.span.line}) may take the "
                        f"sum, but `{layer.owner.name}` never asks `{flag.predicate}`, and `{callee_name(edge)}` "
                        f"reduces as well: {flag.absorber} sums again, which scales the output by the group size"
                        f"{launch(context, Atom(flag.name), found)}",
                        remedy=f"ask `{flag.predicate}(…)` before this call and hand the block `{flag.name}`; "
                        f"or build the communicator without `{flag.permit}`",
                        related=(
                            place(found),
                            Related(permitted.path, permitted.call.span.line, f"`{flag.permit}=True` is given here"),
                        ),
                    )


def _permitted(callers: Callers, layer: Layer, flag: Flag) -> Built | None:
    """The communicator that may take the sum, if what `forward` runs calls it at all."""
    called = {call.callee for frame in callers.forward_frames(layer) for call in _calls(callers, frame)}
    for built in layer.absorbers:
        if any(passed.keyword == flag.permit and passed.literal is True for passed in built.call.arguments):
            if any(f".{built.attribute}." in callee for callee in called):
                return built
    return None


def _calls(callers: Callers, frame: Frame) -> tuple[Call, ...]:
    conduct = callers.conduct(frame.function)
    return conduct.calls if conduct is not None else ()


def _asks(callers: Callers, layer: Layer, flag: Flag) -> bool:
    for frame in layer.frames:
        if any(call.callee.rsplit(".", 1)[-1] == flag.predicate for call in _calls(callers, frame)):
            return True
    return False


def _blocks(callers: Callers, layer: Layer, flag: Flag) -> Iterator[tuple[Edge, Sum]]:
    """The calls of blocks, on the way from `forward`, that reduce and are not handed the flag from further up."""
    for frame in callers.forward_frames(layer):
        for edge in callers.edges(frame):
            if edge.built is None or flag.name in dict(edge.call.known):
                continue
            for found in block_sums(callers, edge):
                if callers.possible(found.condition, unknown=False):
                    yield edge, found
                    break
