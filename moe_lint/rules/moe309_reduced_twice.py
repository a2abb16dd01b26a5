from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from textwrap import indent

from moe_lint.facts import CallResult
from moe_lint.formula import atom_set
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Finding, Related, Route
from moe_lint.remembered import remembered
from moe_lint.rules._cases import ASK, BARE, CALL, ROUTED, SETTLE, Piece, block, case, experts, layer_case, method
from moe_lint.rules._in_turn import summed_in_turn
from moe_lint.rules._layers import block_sums
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site, owner_of

_OWN = re.compile(r"self\.\w+$")

_MARKED = BARE.rstrip() + "  # <- MOE309"
_PAIR = """
if self.ep_size > 1:
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1:
    x = moe_tensor_model_parallel_all_reduce(x)
"""
_WHOLE = case("", experts(_PAIR.replace("moe_tensor", "tensor").rstrip() + "  # <- MOE309"), absorber=False)
_IN_THE_LAYER = """
if not should_allreduce_fusion and not use_reduce_scatter:
    x = tensor_model_parallel_all_reduce(x)  # <- MOE309
"""
_NARROW = """
def moe_tensor_model_parallel_all_reduce(x):
    return get_moe_tp_group().all_reduce(x)
"""


def _in_turn(
    first: str = "self.tp_size > 1",
    second: str = "self.tp_size > 1",
    joined: str = "self.finished(x + self.scaled(y), done)",
    mark: str = "",
) -> tuple[Piece, ...]:
    """A block that sums a term in a method, and what it joins in another."""
    return (
        method(f"done = x.numel() > 9\ny = self.summed(x, done)\nx = self.experts(x)\nx = {joined}", parameters="x"),
        "def scaled(self, y):\n    return y * 2\n",
        f"def summed(self, y, done):\n    y = self.shared(y)\n    if {first}:\n"
        "        y = tensor_model_parallel_all_reduce(y)\n    return y\n",
        f"def finished(self, x, done=False):\n    if {second}:\n"
        f"        x = tensor_model_parallel_all_reduce(x){mark}\n    return x\n",
    )


def _one_by_one(init: str, first: str, mark: str = "") -> tuple[Piece, ...]:
    """A constructor, and a block that sums its shared experts under a condition of their own, then what they join."""
    return (
        f"def __init__(self, config):\n    self.ep_size = config.ep_size\n{indent(cleandoc(init), '    ')}\n",
        experts(f"""
            shared = self.shared(x)
            if {first}:
                shared = tensor_model_parallel_all_reduce(shared)
            x = x + shared
            if self.tp_size > 1:
                x = tensor_model_parallel_all_reduce(x){mark}
        """),
    )


_NO_TP_BESIDE_EP = """
self.attn_tp_size = config.tp_size
self.tp_size = config.tp_size
if self.ep_size > 1:
    self.tp_size = 1
"""


class ReducedTwice(Rule):
    """A block sums over the ranks what it has summed over them before.

    A second all-reduce of the same tensor adds up results that are whole already: every token is scaled by the group
    size. It comes with a merge that keeps both versions of a line, with a method that has begun to reduce for itself,
    or with a shared expert whose term is summed before it joins what is summed in the end.

    Instead of

        shared = tensor_model_parallel_all_reduce(self.shared_experts(x))
        x = self.experts(x) + shared
        x = tensor_model_parallel_all_reduce(x)

    sum once, what the block hands on:

        x = self.experts(x) + self.shared_experts(x)
        x = tensor_model_parallel_all_reduce(x)

    So is a layer that sums what its block has summed, and a block whose `forward` hands to one method that sums what
    another has summed. Not reported: an EP and a TP sum of one tensor, which are over different ranks, and sums that
    run under opposite conditions. Reported at the second sum; that the first one has no guard, or drifts from a
    sibling, is not told beside it. There is no fix: which of the two may go is for the model to say.
    """

    code = "MOE309"
    name = "reduced-twice"
    follows = True
    VALID = (
        case("once", experts(ROUTED)),
        case("over-two-axes", experts(_PAIR), absorber=False),
        case(
            "over-two-axes-in-a-tree-with-one-tp-sum",
            experts(_PAIR.replace("moe_tensor", "tensor")),
            absorber=False,
        ),
        case(
            "one-or-the-other",
            experts(
                """
                if x.shape[0] > 1:
                    x = tensor_model_parallel_all_reduce(x)
                else:
                    x = tensor_model_parallel_all_reduce(x)
                """
            ),
            absorber=False,
        ),
        case(
            "unless-a-method-has",
            experts(
                """
                x, done = self.joined(x)
                if self.tp_size > 1 and not done:
                    x = tensor_model_parallel_all_reduce(x)
                """
            ),
            method("\nif self.early:\n    return tensor_model_parallel_all_reduce(x), True", "joined", "x").replace(
                "return x\n", "return x, False\n"
            ),
            absorber=False,
        ),
        layer_case(
            "left-to-the-layer",
            block(experts(ROUTED)),
            layer=ASK + "x = self.mlp(x, True, use_reduce_scatter)" + _IN_THE_LAYER.partition("  #")[0] + SETTLE,
        ),
        layer_case(
            "whoever-builds-the-block-decides",
            block(
                experts(ROUTED.replace("self.tp_size > 1", "self.sums and self.tp_size > 1")),
                init="self.experts = FusedMoE(config)\nself.sums = sums",
            ).replace("self, config)", "self, config, sums)"),
            build="self.mlp = Block(config, sums=config.sums)",
            layer=ASK + CALL + _IN_THE_LAYER.partition("  #")[0] + SETTLE,
        ),
        case("in-two-methods-of-which-one-sums", *_in_turn("done", "not done"), absorber=False),
        case("in-two-methods-of-which-one-may-not", *_in_turn(second="self.late"), absorber=False),
        case("in-two-methods-on-two-terms", *_in_turn(joined="self.scaled(y) + self.finished(x)"), absorber=False),
        case(
            "in-a-method-that-says-whether-it-has",
            *(
                text.replace("y = self.summed(x, done)", "y, done = self.summed(x, done)").replace(
                    "return y", "return y, True"
                )
                for text in _in_turn(second="not done")
            ),
            absorber=False,
        ),
        case(
            "of-a-size-that-is-one-where-the-term-is-summed",
            *_one_by_one(_NO_TP_BESIDE_EP, "self.attn_tp_size > 1 and self.ep_size > 1"),
            absorber=False,
        ),
        case(
            "of-a-size-that-is-one-in-a-ternary",
            *_one_by_one("self.tp_size = 1 if self.ep_size > 1 else config.tp_size", "self.ep_size > 1"),
            absorber=False,
        ),
        case(
            "attention-before",
            method("x = tensor_model_parallel_all_reduce(self.attention(x))\nx = self.experts(x)\n" + BARE.strip()),
            absorber=False,
        ),
    )
    INVALID = (
        layer_case("in-the-block-and-in-the-layer", block(experts(ROUTED)), layer=ASK + CALL + _IN_THE_LAYER + SETTLE),
        case("in-two-methods-one-after-the-other", *_in_turn(mark="  # <- MOE309"), absorber=False),
        case(
            "in-two-methods-that-ask-the-same",
            *_in_turn("x.shape[0] > 1", "x.shape[0] > 1", mark="  # <- MOE309"),
            absorber=False,
        ),
        case("in-a-row", experts(BARE.strip() + "\nx = x.view(-1)" + _MARKED), absorber=False),
        case(
            "a-term-before-it-joins",
            experts(
                """
                shared = tensor_model_parallel_all_reduce(self.shared(x))
                x = x + shared
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE309
                """
            ),
            absorber=False,
        ),
        case(
            "in-a-method-and-behind-it",
            method("x, y = self.both(x)\nx = x + y" + _MARKED, parameters="x"),
            "def both(self, x):\n    y = tensor_model_parallel_all_reduce(self.experts(x))\n    return y, x\n",
            absorber=False,
        ),
        case(
            "of-one-size-that-may-be-one",
            *_one_by_one(_NO_TP_BESIDE_EP, "self.tp_size > 1", "  # <- MOE309"),
            absorber=False,
        ),
        case(
            "of-two-sizes-that-the-class-leaves-alone",
            *_one_by_one("self.tp_size = config.tp_size", "self.tp_size > 1 and x.shape[0] > 1", "  # <- MOE309"),
            absorber=False,
        ),
        Case("over-all-ranks-behind-an-axis", {**_WHOLE.files, "engine/distributed.py": _NARROW}),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        told = set()
        for site, before, shown in summed_twice(context):
            if (site.path, site.raw.span) in told:
                continue
            told.add((site.path, site.raw.span))
            whole = site.raw.operand == before.raw.target or site.raw.function != before.raw.function
            term = "what it is handed" if whole else "a term of what it is handed"
            yield self.finding(
                site,
                f"{term} was summed over these ranks before, {_where(before, site)}: this all-reduce counts "
                f"it once more for every rank (for example {shown})",
                context,
                related=(Related(before.path, before.raw.span.line, "summed here"),),
                remedy="sum once, behind everything that the ranks share",
            )


@remembered
def summed_twice(context: Context) -> tuple[tuple[Site, Site, Configuration], ...]:
    """Every sum of what was summed before: (again, before, when)."""
    return (*context.ways.summed_before(), *_behind_blocks(context), *summed_in_turn(context))


@remembered
def one_too_many(context: Context) -> frozenset[Site]:
    """The bare reductions behind which their function sums once more: one of the two has to go."""
    return frozenset(
        before
        for site, before, _ in summed_twice(context)
        if before.route is Route.NONE
        and site.route in (Route.HELPER, Route.INLINE, Route.WRAPPER, Route.NONE)
        and (site.path, site.raw.function) == (before.path, before.raw.function)
    )


def _where(before: Site, site: Site) -> str:
    inside = before.raw.class_name in (None, site.raw.class_name)
    return f"on line {before.raw.span.line}" if inside else f"by `{before.raw.class_name}`"


def _behind_blocks(context: Context) -> Iterator[tuple[Site, Site, Configuration]]:
    """Sums that a layer makes of what its block has summed: (again, before, when)."""
    callers, ways = context.callers, context.ways
    own = {Ref(site.path, site.raw.function) for site in context.judged()}
    for _, start, edge in callers.calls:
        function, facts = edge.frame.function, context.index.facts(edge.frame.path)
        hidden = any(bound.passed.hides for bound in edge.bound)
        if function not in own or edge.built is None or start != edge.frame or facts is None or hidden:
            continue
        handed = {
            span
            for span, origins in facts.paths(function.name).summed
            if any(isinstance(one, CallResult) and one.callee == edge.call.callee for one in origins)
        }
        sites = [s for s in context.judged() if Ref(s.path, s.raw.function) == function and s.raw.span in handed]
        for site in sites:
            asked = {name for part in site.raw.guard for name in atom_set(part.formula)}
            for found in block_sums(callers, edge):
                # what the block asks of itself is not what the layer asks of itself
                inside = atom_set(found.condition) - atom_set(edge.target.holds)
                free = {name for name in inside if not ways.tells(name, found.site.path)}
                free -= {name for name in free if _is_given(name, owner_of(found.site), context)}
                if not found.site.post_experts or free & asked:
                    continue
                free |= {name for name in atom_set(edge.target.holds) if not ways.tells(name, site.path)}
                shown = ways.again(site, found.site, found.condition, free)
                if shown is not None:
                    yield site, found.site, shown


def _is_given(atom: str, owner: Ref, context: Context) -> bool:
    """Whether whoever builds a block decides a condition of it (`self.sums = sums`)."""
    given = context.index.attributes(owner, atom.removeprefix("self.")) if _OWN.match(atom) else ()
    headers = ((context.index.facts(path), fact) for path, fact in given)
    return any(facts is not None and fact.alias in facts.header(fact.function)[1] for facts, fact in headers)
