from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import indent

from moe_lint.absorbers import absorbers_of
from moe_lint.builders import builders
from moe_lint.formula import Atom, atom_set
from moe_lint.index import Ref
from moe_lint.model import Finding, Related, Span
from moe_lint.rules._cases import BARE, UTILS, Piece, block, experts, when_read
from moe_lint.rules._layers import launch
from moe_lint.rules._parts import parts
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site, is_ownership

_BOUNDARY = """
def make_stage_boundary(*stages):
    return Boundary(stages)
"""
_KEPT = "self.experts = FusedMoE(config)\nself.reduce_results = reduce_results"
_OWNED = experts("\nif self.reduce_results:\n    x = reduce_moe_output(x)", parameters="x")
_TOLD = "self.mlp = Block(config, reduce_results=False)"
_WRAPPER = """

def reduce_moe_output(x):
    if get_tp_size() > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
        return tensor_model_parallel_all_reduce(x)
    return x
"""
_LINEAR = """
class Linear:
    def __init__(self, size, reduce_results=True):
        self.reduce_results = reduce_results

    def forward(self, x):
        if self.reduce_results and self.tp_size > 1:
            x = tensor_model_parallel_all_reduce(x)
        return x
"""
_ARMS = """
if config.sparse:
    self.mlp = Block(config, reduce_results=False)
else:
    self.mlp = Linear(config)
"""


@when_read
def _case(name: str, body: Piece, build: str, *, boundary: bool = True, more: str = "", told: bool = True) -> Case:
    """A block, and a layer that builds it behind a boundary which sums without being asked."""
    written = block(body, init=_KEPT if told else "self.experts = FusedMoE(config)").replace(
        "self, config)", "self, config, reduce_results=True)", 1
    )
    builds = build.strip() + ("\nself.boundary = make_stage_boundary(self.mlp)" if boundary else "")
    layer = f"class Layer:\n    def __init__(self, config):\n{indent(builds, ' ' * 8)}\n\n"
    layer += "    def forward(self, x):\n        x = self.mlp(x)\n        return self.boundary.finish(x)\n"
    imports = "from engine.layers.boundary import make_stage_boundary\nfrom engine.layers.moe.utils import *\n"
    helper = UTILS.replace(", use_reduce_scatter=False, should_allreduce_fusion=False", "").replace(
        "    if should_allreduce_fusion or use_reduce_scatter:\n        return True\n", ""
    )
    files = {
        "engine/layers/moe/utils.py": helper + _WRAPPER,
        "engine/layers/boundary.py": _BOUNDARY,
        "engine/models/pretend.py": f"{imports}\n{more}\n\n{written}\n\n\n{layer}",
    }
    return Case(name, files)


class BlockAndBoundarySum(Rule):
    """A block behind a layer boundary sums for itself, although the boundary takes every sum over.

    In trees with stage boundaries a block behind one returns its partial sum, and the boundary sums as it sees fit:
    layers build their blocks with `reduce_results=False`. A block that is built to reduce, or reduces whatever it was
    told, sums before the boundary does, and every token is scaled by the group size.

    Instead of

        self.mlp = SparseMoeBlock(config)  # reduces by default
        self.ffn_boundary = make_stage_boundary(...)

    leave the sum to the boundary:

        self.mlp = SparseMoeBlock(config, reduce_results=False)

    Only where the layers' own argument tells: a block without one may have other layers around it. Of an attribute
    that holds one of two blocks (a dense one in the first layers), each is to be told. Reported where the block is
    built, or at the reduction that runs in spite of what the block was told. There is no fix.
    """

    code = "MOE310"
    name = "block-and-boundary-sum"
    VALID = (
        _case("told-not-to", _OWNED, _TOLD),
        _case(
            "told-not-to-by-a-local",
            _OWNED.replace("if self", "sums = self").replace("results:", "results\n    if sums:"),
            _TOLD,
        ),
        _case("without-a-boundary", _OWNED, "self.mlp = Block(config)", boundary=False),
        _case(
            "never-told", experts("x = reduce_moe_output(x)", parameters="x"), "self.mlp = Block(config)", told=False
        ),
        _case(
            "both-arms-told",
            _OWNED,
            _ARMS.replace("Linear(config", "Linear(config, reduce_results=False"),
            more=_LINEAR,
        ),
        _case("decided-at-run-time", _OWNED, "self.mlp = Block(config, reduce_results=config.alone)"),
    )
    INVALID = (
        _case("by-default", _OWNED, "self.mlp = Block(config)  # <- MOE310"),
        _case("inverted", _OWNED.replace("if self", "if not self"), f"{_TOLD}  # <- MOE310"),
        _case("not-asked", experts(f"{BARE.rstrip()}  # <- MOE310", parameters="x"), _TOLD),
        _case("one-arm", _OWNED, _ARMS.replace("Linear(config)", "Linear(config)  # <- MOE310"), more=_LINEAR),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        if absorbers_of(context.policy).asked:
            return  # there a block is asked by flags to leave its sum
        told: set[tuple[str, Span]] = set()
        for path, span, owner, message, related in (*_built(context), *_arms(context), *_in_spite(context)):
            if (path, span) not in told:
                told.add((path, span))
                yield Finding(
                    self.code,
                    self.name,
                    path,
                    span,
                    self.severity,
                    self.confidence,
                    f"{message}, and the layer boundary sums again, which scales the output by the group size"
                    f"{launch(context, Atom(_SEVERAL))}",
                    _function_at(path, span, context),
                    owner,
                    related=related,
                    remedy="leave the sum to the boundary",
                )


#: Any condition under which there is something to sum.
_SEVERAL = "tp_size > 1"
#: file, place, class, message, related places
_Told = tuple[str, Span, str | None, str, tuple[Related, ...]]


def _built(context: Context) -> Iterator[_Told]:
    """Blocks whose layer tells them to sum behind a boundary."""
    for site in context.sites:
        for one in builders(site, context.callers) if site.post_experts else ():
            if one.sums and one.boundary and one.built is not None:
                path, span = one.built
                related = (Related(site.path, site.raw.span.line, "the block sums here"),)
                message = f"`{one.name}` builds `{site.raw.class_name}` with `{one.argument}={one.value}`: it sums"
                yield path, span, one.name, message, related


def _layers(context: Context) -> dict[Ref, list[Site]]:
    """The layers behind a boundary that build blocks with a sum after experts, and these sums."""
    found: dict[Ref, list[Site]] = {}
    for site in context.sites:
        if site.post_experts and site.axis != "other" and site.raw.class_name is not None:
            block = Ref(site.path, site.raw.class_name)
            for kind in (block, *context.index.subclasses(block)):
                for user in sorted(context.index.users(kind)):
                    if context.index.constructs_absorber(user):
                        found.setdefault(user, []).append(site)
    return found


def _arms(context: Context) -> Iterator[_Told]:
    """Blocks that sum in an attribute in which another one is told not to."""
    for layer, sites in _layers(context).items():
        kinds = {Ref(site.path, site.raw.class_name or "") for site in sites}
        blocks = {
            name
            for name, several in context.callers.built(layer).items()
            if any(kinds & set(context.index.mro(built.owner)) for built in several)
        }
        found = list(parts(context.callers, layer, blocks.__contains__))
        for part in found:
            others = [o for o in found if o.attribute == part.attribute and o.sums is False and o.explicit]
            if part.sums is True and others:
                related = (Related(others[0].path, others[0].call.span.line, "another block there is told not to sum"),)
                yield part.path, part.call.span, layer.name, f"`self.{part.attribute}` sums by {part.by}", related


def _in_spite(context: Context) -> Iterator[_Told]:
    """Reductions of a block that its layer told not to sum, and that asks nothing of the kind."""
    words = context.index.profile.ownership
    for layer, sites in _layers(context).items():
        for built in (one for several in context.callers.built(layer).values() for one in several):
            no = [p.keyword for p in built.call.arguments if p.keyword in words and p.literal is False]
            mro = context.index.mro(built.owner)
            for site in sites if no else ():
                asks = any(is_ownership(name, context.index.profile) for name in atom_set(site.guard))
                if Ref(site.path, site.raw.class_name or "") in mro and not asks:
                    related = (Related(built.path, built.call.span.line, f"told by `{no[0]}=False` not to sum"),)
                    message = f"`{built.owner.name}` sums here although `{layer.name}` tells it not to"
                    yield site.path, site.raw.span, site.raw.class_name, message, related


def _function_at(path: str, span: Span, context: Context) -> str:
    facts = context.index.facts(path)
    names = facts.functions_at([span.line]) if facts is not None else []
    return names[0].rpartition(".")[2] if names else ""
