from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.absorbers import absorbers_of
from moe_lint.builders import builders
from moe_lint.formula import Relation
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Axis, Confidence, Finding, Related
from moe_lint.rules._cases import ASK, BARE, ROUTED, SETTLE, block, case, experts, layer_case, method
from moe_lint.rules._layers import has_experts
from moe_lint.rules.base import Context, Rule
from moe_lint.rules.moe304_reduced_by_nobody import unreduced
from moe_lint.sites import Site
from moe_lint.ways import Way

_OVERLAPPED = """
if self.alt_stream is not None:
    return self.forward_overlapped(x)
return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)
"""
_DEEPEP = """
if get_moe_a2a_backend().is_deepep():
    return self.experts(x)
return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)
"""
_SMALL = """
if x.shape[0] == 1:
    return self.forward_small(x)  # <- MOE307
x = self.experts(x)
if self.ep_size > 1:
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1:
    x = moe_tensor_model_parallel_all_reduce(x)
"""
_SMALL_TP = "\nif self.tp_size > 1:\n    x = moe_tensor_model_parallel_all_reduce(x)"
_SUM = "tensor_model_parallel_all_reduce"
_PAIR = """
if self.ep_size > 1:
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1:
    x = moe_tensor_model_parallel_all_reduce(x)"""
#: A constructor that says of which group `self.tp_size` is the size.
_SIZE = "def __init__(self, config):\n    self.tp_size = {}\n    self.experts = FusedMoE(config)\n"
_LOST = BARE.rstrip() + "  # <- MOE307"
_HELD_BACK = """
if self.shared is not None:
    x = x + self.shared(x)
    if self.tp_size > 1:
        x = tensor_model_parallel_all_reduce(x)  # <- MOE307
"""


_FLAGS_BY_OTHER_NAMES = """
if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
    is_tp_path=True, use_reduce_scatter=scatter, should_allreduce_fusion=fuse
):
    x = tensor_model_parallel_all_reduce(x)
"""


#: Shared experts that are summed apart; what says how is handed over beside them, and comes from the routed ones.
_APART = """
x, summed = self.early(self.experts(x), self.summed)
shared = self.apart(self.shared(x), summed)
x = self.late(x)
x = x + shared if shared is not None else x
"""
_PARTS = (
    "def early(self, x, summed):\n    return x, summed\n",
    method(
        "if y is not None and self.tp_size > 1:\n    y = tensor_model_parallel_all_reduce(y)\nreturn y", "apart", "y, z"
    ),
    method(BARE, "late", "x"),
)


class PathWithoutReduction(Rule):
    """On one path a block hands on what its experts returned without the sum that its other paths make.

    Nobody downstream sums unless the layer has asked the block to leave its sum. A `return` above the reduction, a
    `forward…` method for another stream, platform or batch that leaves it out, or a reduction that runs only where
    there is a shared expert: on that path each rank goes on with its own partial sum. The text turns to noise as soon
    as the path is taken, and every other path looks fine.

    Instead of

        x = self.experts(x)
        if self.shared_experts is None:
            return x
        x = x + self.shared_experts(x)
        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = tensor_model_parallel_all_reduce(x)
        return x

    let all paths come by the reduction:

        x = self.experts(x)
        if self.shared_experts is not None:
            x = x + self.shared_experts(x)
        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = tensor_model_parallel_all_reduce(x)
        return x

    Also reported: a reduction whose result is not what the block returns, one that asks for more than one rank of
    another group than it sums over (`self.tp_size` is what the class sets it to), a path that sums over one axis of
    two, or over the group of the attention, and a block that layers tell by a flag when
    to leave its sum, but that makes none. Not reported: paths of an a2a backend, whose combine has summed; what the
    caller decides by an argument or a switch of the block (`self.fast`), or an option that is not known; blocks behind
    a boundary that takes sums by contract; what is handed to a function that cannot be followed; a block that is told
    nothing and never sums, or whose experts were built not to (MOE304). Reported at the `return`, or at
    the reduction where that is what a condition holds back. There is no fix.
    """

    code = "MOE307"
    name = "path-without-reduction"
    confidence = Confidence.MEDIUM
    follows = True
    VALID = (
        case("one-path", experts(ROUTED)),
        case("left-to-the-layer", experts("if should_allreduce_fusion:\n    return x\n" + ROUTED.strip())),
        case("an-a2a-backend-sums", method(_DEEPEP), experts(ROUTED, "forward_normal")),
        case(
            "both-paths",
            method(_OVERLAPPED),
            experts(ROUTED, "forward_normal"),
            experts(BARE, "forward_overlapped", "x"),
            absorber=False,
        ),
        case(
            "reduced-by-the-caller",
            method("x = self.routed(x)\n" + ROUTED.strip()),
            experts("\nif x.shape[0] == 0:\n    return x", "routed", "x"),
        ),
        case("shared-experts-summed-apart", method(_APART, parameters="x"), *_PARTS, absorber=False),
        case(
            "reduced-by-a-method-that-only-sums",
            method("x = self.routed(x)\nif self.tp_size > 1:\n    x = self.summed(x)", parameters="x"),
            experts("", "routed", "x"),
            "def summed(self, x):\n    return tensor_model_parallel_all_reduce(x)\n",
            absorber=False,
        ),
        case("reduced-in-a-method", method("return self.reduced(self.experts(x))"), method(BARE, "reduced", "x")),
        case(
            "flags-by-other-names",
            experts("x = self.reduced(x, should_allreduce_fusion, scatter=use_reduce_scatter)"),
            method(_FLAGS_BY_OTHER_NAMES, "reduced", "x, fuse, *, scatter"),
        ),
        case(
            "the-engine-answers",
            experts("if ranks_of(mesh, AXIS) // ranks_of(mesh) > 1:\n    return x\n" + BARE.strip()),
        ),
        case("the-caller-decides", experts("if not reduce:\n    return x\n" + BARE.strip(), parameters="x, reduce")),
        case(
            "what-decides-is-not-known",
            method(_DEEPEP.replace("get_moe_a2a_backend().is_deepep()", 'settings["enable_deepep"]')),
            experts(ROUTED, "forward_normal"),
        ),
        case("an-own-condition", experts(BARE.replace("> 1:", "> 1 and self.sums:"))),
        case("a-switch-of-the-block", experts("\nif self.fast:\n    return x\n" + BARE.strip()), absorber=False),
        case("nothing-was-computed", method("if x.shape[0] == 0:\n    return x\nx = self.experts(x)\n" + BARE.strip())),
        case("never-summed", experts("if self.shared is None:\n    return x"), absorber=False),
        layer_case("never-told-and-never-summed", block(experts("return x", parameters="x")), layer="x = self.mlp(x)"),
        case("over-all-ranks", experts(BARE), absorber=False),
        case(
            "summed-where-another-group-has-one-rank",
            experts(BARE.replace("> 1:", "> 1 and self.moe_tp_size == 1:")),
            absorber=False,
        ),
        *(
            case(f"{name}-size", _SIZE.format(size), experts(BARE), absorber=False)
            for name, size in (
                ("own", "get_tensor_model_parallel_world_size()"),
                ("own-of-the-context", "get_parallel().tp_size  # all ranks"),
                ("unknown", "config.ranks()"),
                ("counted", "get_moe_expert_parallel_world_size() * get_moe_tensor_parallel_world_size()"),
                ("chosen", "get_attention_tp_size()\n    self.tp_size = get_tensor_model_parallel_world_size()"),
                ("raised", "get_attention_tp_size()\n    self.tp_size *= config.replicas"),
            )
        ),
        case(
            "sizes-of-a-pair",
            _SIZE.format("get_moe_tensor_parallel_world_size()\n    self.ep_size = get_parallel().moe_ep_size"),
            experts(_PAIR),
            absorber=False,
        ),
        case("over-a-named-group", experts(BARE.replace(_SUM, "get_tp_group().all_reduce")), absorber=False),
    )
    INVALID = (
        case(
            "a-method-that-only-sums-is-not-always-called",
            method(
                "x = self.routed(x)\nif self.shared is None:\n    return x  # <- MOE307\nx = x + self.shared(x)\n"
                "if self.tp_size > 1:\n    x = self.summed(x)",
                parameters="x",
            ),
            experts("", "routed", "x"),
            "def summed(self, x):\n    return tensor_model_parallel_all_reduce(x)\n",
            absorber=False,
        ),
        *(
            case(f"size-of-{name}", _SIZE.format(size), experts(_LOST), absorber=False)
            for name, size in (
                ("the-attention", "get_attention_tp_size()"),
                ("the-attention-in-the-context", "get_parallel().attn_tp_size"),
                ("the-ranks-that-share-an-expert", "get_moe_tensor_parallel_world_size()"),
                ("the-experts", "get_moe_expert_parallel_world_size()"),
            )
        ),
        case(
            "size-of-the-other-axis-in-a-pair",
            _SIZE.format("get_parallel().moe_ep_size\n    self.ep_size = get_parallel().moe_ep_size"),
            experts(f"{_PAIR}  # <- MOE307"),
            absorber=False,
        ),
        case(
            "over-the-group-of-the-ranks-that-share-an-expert",
            experts(BARE.replace(_SUM, "get_moe_tp_group().all_reduce").strip() + "\nreturn x  # <- MOE307"),
            absorber=False,
        ),
        layer_case(
            "told-when-not-to-and-never-does",
            block(experts("return x  # <- MOE307")),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE,
        ),
        case(
            "early-return",
            experts("if self.shared is None:\n    return x  # <- MOE307\nx = x + self.shared(x)\n" + ROUTED.strip()),
        ),
        case(
            "early-return-of-what-a-method-returned",
            method("x, y = self.routed(x)\nif y is None:\n    return x  # <- MOE307\nx = x + y\n" + ROUTED.strip()),
            "def routed(self, x):\n    return self.experts(x), self.shared(x)\n",
        ),
        case(
            "method-for-another-stream",
            method(_OVERLAPPED),
            experts(ROUTED, "forward_normal"),
            experts("return x  # <- MOE307", "forward_overlapped", "x"),
        ),
        case("only-with-a-shared-expert", experts(_HELD_BACK), absorber=False),
        case(
            "result-not-used",
            experts("\nif self.tp_size > 1:\n    tensor_model_parallel_all_reduce(x)  # <- MOE307"),
            absorber=False,
        ),
        case("size-of-another-group", experts(BARE.rstrip().replace("tp", "ep", 1) + "  # <- MOE307"), absorber=False),
        case(
            "never-over-the-other-axis",
            experts(BARE.strip().replace("tensor", "moe_tensor") + "\nreturn x  # <- MOE307"),
        ),
        case("one-axis-of-two", method(_SMALL), experts(_SMALL_TP, "forward_small", "x"), absorber=False),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        ways = context.ways
        yield from self._never_summed(context)
        seen: set[tuple[str, object]] = set()
        for owner, axes in ways.blocks():
            if any(_left_to_boundaries(site, context) for site in axes.values()):
                continue
            if not absorbers_of(context.policy).asked and any(site.absorber for site in axes.values()):
                continue  # a boundary that sums by contract makes up for any sum that is left out
            if set(axes) == {"other"}:
                yield from self._over_fewer(owner, axes["other"], context)
                continue
            asked = [(axis, site, site.raw.collective) for axis, site in axes.items() if axis != "other"]
            if ways.leaves_out_an_axis(axes):
                asked.append(("EP", next(iter(axes.values())), ""))
            for axis, site, collective in asked:
                for way in ways.unsummed(owner, axis):
                    held = (*way.sums, *way.beside)
                    if any(s.relation in (Relation.STRONGER, Relation.DIFFERENT) for s in held):
                        continue  # that its guard skips too often is told there
                    place = (held[-1].path, held[-1].raw.span) if held else (way.function.path, way.exit)
                    shown = ways.shown(way, axis, collective) if place not in seen else None
                    if shown is not None:
                        seen.add(place)
                        yield self._told(owner, way, site, axis, shown, context)

    def _over_fewer(self, owner: Ref, site: Site, context: Context) -> Iterator[Finding]:
        """A block whose only sum is over a group that may have fewer ranks than hold a part of the experts."""
        group = context.ways.group(site)
        for way in context.ways.unsummed(owner, "TP") if group is not None else ():
            shown = context.ways.shown(way, "TP", fewer=group or "")
            if shown is not None:
                size = context.index.profile.launch.spelled(group or "")
                yield self.finding(
                    site,
                    f"`{owner.name}` sums what its experts computed over the `{size}` ranks of this group only, which "
                    f"are not all that hold a part of it: each rank keeps a partial sum (for example {shown})",
                    context,
                    remedy="sum over all ranks among which the experts are split",
                )
                return

    def _told(self, owner: Ref, way: Way, site: Site, axis: Axis, shown: Configuration, context: Context) -> Finding:
        lost = f"each rank keeps its own partial sum (for example {shown})"
        if way.sums:
            return self.finding(
                way.sums[-1],
                f"`{owner.name}` returns what its experts computed without this all-reduce in a state in which nobody "
                f"else sums: {lost}",
                context,
                remedy="let the reduction depend on the size of its group and on the helper alone",
            )
        if way.beside:
            return self.finding(
                way.beside[-1],
                f"what this all-reduce returns is not what `{owner.name}` returns on line {way.exit.line}: {lost}",
                context,
                remedy="return what the reduction returned",
            )
        elsewhere = axis == site.axis
        others = "which its other paths make" if elsewhere else "only over the ranks that share an expert"
        return self._at_exit(
            way,
            f"`{owner.name}` returns what its experts computed here without a sum over the {axis} group, "
            f"{others}: {lost}",
            Related(
                site.path,
                site.raw.span.line,
                f"{'another path' if elsewhere else 'it'} runs `{site.raw.collective}` here",
            ),
            "reduce before returning, as the other paths do",
            f"{way.function.name.rpartition('.')[2]} | {axis}",
        )

    def _at_exit(self, way: Way, message: str, related: Related, remedy: str, subject: str) -> Finding:
        class_name, _, function = way.function.name.rpartition(".")
        return Finding(
            self.code,
            self.name,
            way.function.path,
            way.exit,
            self.severity,
            self.confidence,
            message,
            function,
            class_name or None,
            related=(related,),
            remedy=remedy,
            subject=subject,
        )

    def _never_summed(self, context: Context) -> Iterator[Finding]:
        """Blocks that a layer tells when to leave their sum, and that never make one; nor does the layer."""
        callers, told = context.callers, set[Ref]()
        for _, start, edge in callers.calls:
            block = edge.built.owner if edge.built is not None and start == edge.frame else None
            if block is None or block in told or not has_experts(callers, edge):
                continue
            flags = [f for f in context.index.profile.flags if callers.asked(edge.frame, edge.call, f.name)]
            own = any((s.path, s.raw.function) == (edge.frame.path, edge.frame.function.name) for s in context.sites)
            if own or not any(edge.passes(flag.name) for flag in flags) or callers.sums(edge):
                continue
            if any(part.owner in context.index.mro(block) for part in unreduced(context)):
                continue  # told where its experts are built
            for way in context.ways.unsummed(block, "TP"):
                shown = context.ways.shown(way, "TP")
                if shown is not None and block not in told:
                    told.add(block)
                    yield self._at_exit(
                        way,
                        f"`{block.name}` is told when to leave its sum to others, and never makes one: each rank keeps "
                        f"its own partial sum (for example {shown})",
                        Related(edge.frame.path, edge.call.span.line, "the layer hands it a flag here"),
                        "reduce before returning, where the helper does not skip",
                        "never",
                    )


def _left_to_boundaries(site: Site, context: Context) -> bool:
    """Whether whoever builds the block tells it to leave its sum to a layer boundary."""
    found = builders(site, context.callers)
    return bool(found) and all(one.open is None and not one.sums for one in found)
