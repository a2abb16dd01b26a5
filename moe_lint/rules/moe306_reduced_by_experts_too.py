from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.facts import Call
from moe_lint.formula import TRUE
from moe_lint.index import Ref
from moe_lint.model import Finding, Related
from moe_lint.rules._cases import ROUTED, block, experts, layer_case
from moe_lint.rules._layers import launch
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site

_LAYER = "x = self.mlp(x)\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)"
_MARKED = ROUTED.replace("_reduce(x)", "_reduce(x)  # <- MOE306")


class ReducedByExpertsToo(Rule):
    """The experts are built to reduce their own output, and the block reduces it again.

    `reduce_results=True` makes the expert layer sum over the ranks before it returns. A reduction in the block on top
    of that sums what is already whole: every token is scaled by the group size. Two owners are as wrong as none.

    Instead of

        self.experts = FusedMoE(..., reduce_results=True)
        ...
        x = self.experts(x, topk_output)
        x = tensor_model_parallel_all_reduce(x)

    give the sum one owner, the block, which can ask the helper:

        self.experts = FusedMoE(..., reduce_results=False)

    Reported at the block's reduction. There is no fix: a block without skip reasons may as well drop its own.
    """

    code = "MOE306"
    name = "reduced-by-experts-too"
    VALID = (
        layer_case(
            "block-owns",
            block(experts(ROUTED), init="self.experts = FusedMoE(config, reduce_results=False)"),
            layer=_LAYER,
        ),
        layer_case(
            "experts-own",
            block(
                "def forward(self, x):\n    return self.experts(x)", init="self.experts = FusedMoE(reduce_results=True)"
            ),
            layer=_LAYER,
        ),
        layer_case(
            "either-or",
            block(
                experts(
                    """
                    if not self.reduce_results and self.tp_size > 1:
                        x = tensor_model_parallel_all_reduce(x)
                    """
                ),
                init="self.experts = FusedMoE(config, reduce_results=True)\nself.reduce_results = True",
            ),
            layer=_LAYER,
        ),
    )
    INVALID = (
        layer_case(
            "both",
            block(experts(_MARKED), init="self.experts = FusedMoE(config, reduce_results=True)"),
            layer=_LAYER,
        ),
        layer_case(
            "constructor-chosen-at-run-time",
            block(experts(_MARKED), init="self.experts = get_moe_impl_class(config)(config, reduce_results=True)"),
            layer=_LAYER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for site in context.sites:
            if not site.post_experts or site.raw.class_name is None or site.axis == "other" or _owned(site, context):
                continue
            for path, call in _built_to_reduce(site, context):
                yield self.finding(
                    site,
                    f"`self.{call.stored}` is built with `{_owner_keyword(call, context)}=True` (line "
                    f"{call.span.line}) and has summed already: this reduction scales every token by the group size"
                    f"{launch(context, TRUE)}",
                    context,
                    related=(Related(path, call.span.line, "the experts are told to reduce here"),),
                    remedy=f"build the experts with `{_owner_keyword(call, context)}=False`, or drop this reduction",
                )
                break


def _owned(site: Site, context: Context) -> bool:
    """Whether an ownership parameter takes part in the decision."""
    ownership = context.index.profile.ownership
    return any(name in str(part.text) for part in site.raw.guard for name in ownership)


def _owner_keyword(call: Call, context: Context) -> str | None:
    ownership = context.index.profile.reducing
    return next((a.keyword for a in call.arguments if a.keyword in ownership and a.literal is True), None)


def _built_to_reduce(site: Site, context: Context) -> Iterator[tuple[str, Call]]:
    """The constructors of the class's experts that are given `reduce_results=True`."""
    profile = context.index.profile
    for ref in context.index.mro(Ref(site.path, site.raw.class_name or "")):
        conduct = context.callers.conduct(Ref(ref.path, f"{ref.name}.__init__"))
        for call in conduct.calls if conduct is not None else ():
            if call.stored is not None and profile.is_expert_attribute(call.stored) and _owner_keyword(call, context):
                yield ref.path, call
