from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.formula import Atom, TooManyAtoms, conj, satisfiable
from moe_lint.index import ProjectIndex, Ref
from moe_lint.model import Confidence, Finding, Related, Span
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, block, experts, layer_case
from moe_lint.rules._layers import flag_of, launch
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import Site

_BASE = block(
    """
    def forward(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):
        return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)
    """,
    experts(ROUTED, "forward_normal"),
    name="BaseBlock",
)
_LAYER = ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE


class OverrideWithoutFlag(Rule):
    """A method that overrides another reduces and does not take a layer-context flag that the other one takes.

    A model often derives its block from another model's and replaces one method. The base's signature is the contract
    with the layers around: they hand it the flags. An override that lacks one of them, or takes it in `*args` or
    `**kwargs` and never looks, reduces although the layer's communicator does, too: every token is scaled by the
    group size. Called by keyword it fails at once; the other ways are silent.

    Instead of

        class MyBlock(BaseBlock):
            def forward_normal(self, x, should_allreduce_fusion=False):
                ...
                if self.tp_size > 1 and not should_allreduce_fusion:

    take every flag that the base takes, and ask the helper:

            def forward_normal(self, x, should_allreduce_fusion=False, use_reduce_scatter=False):

    There is no fix: the reduction has to learn of the flag as well.
    """

    code = "MOE203"
    name = "override-without-flag"
    confidence = Confidence.MEDIUM
    VALID = (
        layer_case(
            "same-flags",
            _BASE,
            block(experts(ROUTED, "forward_normal"), name="Block(BaseBlock)"),
            layer=_LAYER,
        ),
        layer_case(
            "override-does-not-reduce",
            _BASE,
            block("def forward_normal(self, x, *args):\n    return self.experts(x)\n", name="Block(BaseBlock)"),
            layer=_LAYER,
        ),
    )
    INVALID = (
        layer_case(
            "one-flag-less",
            _BASE,
            block(
                """
                def forward_normal(self, x, should_allreduce_fusion=False, *rest):  # <- MOE203
                    x = self.experts(x)
                    if self.tp_size > 1 and not should_allreduce_fusion:
                        x = tensor_model_parallel_all_reduce(x)
                    return x
                """,
                name="Block(BaseBlock)",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "swallowed",
            _BASE,
            block(
                """
                def forward(self, x, **kwargs):  # <- MOE203
                    x = self.experts(x)
                    if self.tp_size > 1:
                        x = tensor_model_parallel_all_reduce(x)
                    return x
                """,
                name="Block(BaseBlock)",
            ),
            layer=_LAYER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        told: set[Ref] = set()
        for site in context.sites:
            override = Ref(site.path, site.raw.function)
            if not site.post_experts or not site.absorber or site.raw.class_name is None or override in told:
                continue
            for base, flags in _lacks(site, context.index):
                missed = [flag for flag in flags if _reduces_in_spite_of(site, flag)]
                if not missed:
                    continue
                told.add(override)
                yield self._found(site, override, base, missed, context)
                break

    def _found(self, site: Site, override: Ref, base: Ref, flags: list[str], context: Context) -> Finding:
        facts = context.index.facts(override.path)
        assert facts is not None
        line = facts.header(override.name)[0]
        text = facts.lines[line - 1]
        start = len(text) - len(text.lstrip()) + 1
        names = " and ".join(f"`{flag}`" for flag in flags)
        absorber = flag_of(context.index.profile, flags[0]).absorber
        base_facts = context.index.facts(base.path)
        base_line = base_facts.header(base.name)[0] if base_facts is not None else 1
        return Finding(
            self.code,
            self.name,
            override.path,
            Span(line, start, line, len(text) + 1),
            self.severity,
            self.confidence,
            f"`{override.name}` overrides `{base.name}` without {names}: its all-reduce (line {site.raw.span.line}) "
            f"runs although {absorber} sums again, which scales the output by the group size"
            f"{launch(context, Atom(flags[0]))}",
            override.name.rsplit(".", 1)[-1],
            site.raw.class_name,
            related=(Related(base.path, base_line, f"`{base.name}` takes {names}"),),
            remedy=f"take {names} as `{base.name}` does, and let the reduction ask the helper with it",
        )


def _lacks(site: Site, index: ProjectIndex) -> Iterator[tuple[Ref, list[str]]]:
    """The overridden methods that take flags which the site's method does not."""
    facts = index.facts(site.path)
    owner = Ref(site.path, site.raw.class_name or "")
    if facts is None or site.raw.function != f"{site.raw.class_name}.{site.method}":
        return
    spellings = index.profile.flag_names
    own = {spellings.get(p, p) for p in facts.header(site.raw.function)[1]}
    base = index.method(owner, site.method, skip=1)
    base_facts = index.facts(base.path) if base is not None else None
    if base is None or base_facts is None:
        return
    theirs = [spellings[p] for p in base_facts.header(base.name)[1] if p in spellings]
    missing = [flag for flag in theirs if flag not in own]
    if missing:
        yield base, missing


def _reduces_in_spite_of(site: Site, flag: str) -> bool:
    try:
        return satisfiable(conj((site.guard, Atom(flag)))) and flag in site.missing
    except TooManyAtoms:
        return False
