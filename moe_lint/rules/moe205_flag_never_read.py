from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.callers import Edge
from moe_lint.formula import Atom, atom_set
from moe_lint.index import Ref
from moe_lint.model import Finding, Related, Span
from moe_lint.profile import Flag
from moe_lint.rules._cases import ASK, BARE, FUSION_ONLY, ROUTED, SETTLE, block, experts, layer_case
from moe_lint.rules._layers import absorbs, callee_name, launch, place, runs_in_spite_of
from moe_lint.rules._plumbing import parameter_for
from moe_lint.rules.base import Context, Rule

_LAYER = ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE
_SIGNATURE = "def forward(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):"


class FlagNeverRead(Rule):
    """A block is handed a layer-context flag, never reads it, and a function that it calls reduces.

    The parameter makes the plumbing look complete: the layer computes the flag, passes it, and the block takes it.
    But the block neither asks it nor hands it on, so a reduction further down runs although the layer's communicator
    will sum, too, and every token is scaled by the group size.

    Instead of

        def forward(self, x, forward_batch, use_reduce_scatter=False):
            return self.forward_normal(x)

    hand it on to whoever reduces:

        def forward(self, x, forward_batch, use_reduce_scatter=False):
            return self.forward_normal(x, use_reduce_scatter=use_reduce_scatter)

    Reported at the `def`. A parameter that no layer ever fills, or of a block that does not reduce, is not reported:
    it does no harm. A reduction in the function itself that ignores the flag is reported there (MOE001, MOE002).

    There is no fix: the functions on the way may have to take the flag first.
    """

    code = "MOE205"
    name = "flag-never-read"
    VALID = (
        layer_case("read", block(experts(ROUTED)), layer=_LAYER),
        layer_case(
            "never-handed",
            block(experts(BARE)),
            layer="x = self.mlp(x)\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)",
        ),
    )
    INVALID = (
        layer_case(
            "one-of-two",
            block(
                f"""
                {_SIGNATURE}  # <- MOE205
                    return self.forward_normal(x, should_allreduce_fusion)
                """,
                experts(FUSION_ONLY, "forward_normal", "x, should_allreduce_fusion=False"),
            ),
            layer=_LAYER,
        ),
        layer_case(
            "both",
            block(
                f"""
                {_SIGNATURE}  # <- MOE205
                    return self.forward_normal(x)
                """,
                experts(BARE, "forward_normal", "x"),
            ),
            layer=_LAYER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        told: set[Ref] = set()
        for layer, _, edge in callers.calls:
            unread = [
                (flag, parameter, found)
                for flag, parameter in _unread(edge, context)
                if (found := runs_in_spite_of(callers, edge, flag.name)) is not None
                and Ref(found.site.path, found.site.raw.function) != edge.target.function
                and absorbs(callers, layer, edge, flag)
            ]
            if not unread or edge.target.function in told:
                continue
            told.add(edge.target.function)
            flag, _, found = unread[0]
            names = " and ".join(f"`{parameter}`" for _, parameter, _ in unread)
            one = len(unread) == 1
            yield Finding(
                self.code,
                self.name,
                edge.target.path,
                _header(edge, context),
                self.severity,
                self.confidence,
                f"`{callee_name(edge)}` is handed {names} and never reads {'it' if one else 'them'}: its all-reduce "
                f"still runs when {'the flag' if one else 'one of them'} is set, and {flag.absorber} sums again, which "
                f"scales the output by the group size{launch(context, Atom(flag.name), found)}",
                edge.target.function.name.rsplit(".", 1)[-1],
                edge.target.class_name,
                related=(
                    place(found),
                    Related(edge.frame.path, edge.call.span.line, f"{names} {'is' if one else 'are'} passed here"),
                ),
                remedy=f"hand {names} on to the function that reduces",
            )


def _unread(edge: Edge, context: Context) -> Iterator[tuple[Flag, str]]:
    """The flags that a call fills and the callee never reads, with their parameters."""
    conduct = context.callers.conduct(edge.target.function)
    values = dict(edge.target.values)
    for flag in context.index.profile.flags:
        parameter = parameter_for(edge, flag.name, context.index)
        filled = flag.name in values and flag.name in atom_set(values[flag.name])
        if conduct is not None and parameter is not None and filled and parameter not in conduct.reads:
            yield flag, parameter


def _header(edge: Edge, context: Context) -> Span:
    facts = context.index.facts(edge.target.path)
    assert facts is not None
    line = facts.header(edge.target.function.name)[0]
    text = facts.lines[line - 1]
    return Span(line, len(text) - len(text.lstrip()) + 1, line, len(text) + 1)
