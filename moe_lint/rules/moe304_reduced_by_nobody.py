from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Iterator
from functools import partial

from moe_lint.absorbers import absorbers_of
from moe_lint.callers import Frame, Instance
from moe_lint.dataflow import OutputOf, Where
from moe_lint.facts import Call
from moe_lint.formula import FALSE, TRUE, assign, conj, negate
from moe_lint.index import ProjectIndex, Ref
from moe_lint.law import no_backend
from moe_lint.model import Confidence, Finding, Route
from moe_lint.profile import longest_part
from moe_lint.remembered import remembered
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, Piece, block, case, experts, layer_case, method, when_read
from moe_lint.rules._layers import calls_a_reducer, launch
from moe_lint.rules._own_weights import OwnExperts, nobody_sums, own_experts
from moe_lint.rules._parts import Part, at_part, constructed, part_of, parts, told
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site, without_topology

_BUILT = re.compile(r"self\.(\w+)(?:: [^=]+)? = (?!.*\bNone$)")
_LAYER = "x = self.mlp(x)\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)"
_EXPERTS = "self.experts = FusedMoE(config, reduce_results=False)"
_SHARED = "self.shared_experts = MLP(config, reduce_results=False)"
_MARKED = "  # <- MOE304"
_REDUCED = "\nif self.tp_size > 1:\n    x = tensor_model_parallel_all_reduce(x)"
_CHOSEN = """
class FusedMoE:
    def __init__(self, config, reduce_results=False):
        self.reduce_results = reduce_results

    def forward(self, x):
        if self.reduce_results and self.tp_size > 1:
            x = tensor_model_parallel_all_reduce(x)
        return x


class DeepEPMoE(FusedMoE):
    pass


class OtherMoE:
    pass


def chosen(config):
    if get_moe_a2a_backend().is_deepep():
        return DeepEPMoE
    return FusedMoE


def chosen_of_others(config):
    return OtherMoE if config.other else FusedMoE


"""
_BY_DEFAULT = "self.experts = FusedMoE(config)"
_WIDTH = "config.width // self.tp_size"
_DOWN = "self.down_proj = RowParallelLinear(config, reduce_results=False)"


@when_read
def _alone(name: str, *methods: Piece, init: str = _EXPERTS, more: str = "") -> Case:
    """A block in a layer without a communicator."""
    plain = case(name, absorber=False)
    path = "engine/models/pretend.py"
    text = plain.files[path]
    head, _, tail = text.partition("class Block:\n")
    decoder = tail[tail.index("class DecoderLayer") :]
    return Case(name, {**plain.files, path: f"{head}{more}{block(*methods, init=init)}\n\n{decoder}"})


@when_read
def _own(
    name: str,
    body: str = "",
    part: str = _WIDTH,
    *more: Piece,
    run: str = "fused_experts(x, self.w1)",
    mark: str = "",
    build: str = "Block(config)",
) -> Case:
    """A block that keeps its experts' weights itself, ``part`` of them, in a layer without a communicator."""
    init = (
        f"self.tp_size = get_tp_world_size()\nself.width = {part}\nself.w1 = nn.Parameter(torch.empty(9, self.width))"
    )
    plain = _alone(name, method(f"x = {run}{mark}\n{body}", parameters="x"), *more, init=init)
    path = "engine/models/pretend.py"
    return Case(name, {**plain.files, path: plain.files[path].replace("Block(config)", build)})


class ReducedByNobody(Rule):
    """A layer of a block is built not to reduce, and nobody on the way reduces what it returns.

    `reduce_results=False` says "I return a partial sum, somebody else sums". In a layer without a communicator or stage
    boundary that somebody is the block, or the layer around it. Where neither reduces, each rank goes on with its own
    partial sum: right on one rank, noise on two. The same holds where the layer has a communicator: that sums only
    when it has asked the block to leave the sum out, and by default it asks for nothing.

    Instead of

        self.experts = FusedMoE(..., reduce_results=False)
        ...
        return self.experts(x, topk_output)

    reduce in the block, or let the experts do it:

        x = self.experts(x, topk_output)
        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = tensor_model_parallel_all_reduce(x)
        return x

    The same goes for a block that keeps a rank's part of its experts' weights itself (`width // self.tp_size`) and runs
    them by a function.

    Experts that are told nothing are looked at where their class does not reduce by default. So are shared experts, and
    other layers of a class that holds experts, if they are told: a shared expert that joins behind the reduction is
    reported although the routed experts are summed, and not beside routed experts that nobody sums either, where one
    reduction is missing for both. Not reported: a layer that is built for one rank, one that is handed on as a value,
    one that only a path of an a2a backend runs, a block that calls something else with `reduce` or `scatter` in its
    name, a block or layer that hands the output to something that cannot be followed, trees in which nothing answers
    who sums, and those in which the layer boundary takes sums by contract. Reported at the constructor call, or where
    the function is called. There is no fix: who sums is for the model to say.
    """

    code = "MOE304"
    name = "reduced-by-nobody"
    confidence = Confidence.MEDIUM
    VALID = (
        _alone("the-block-reduces", experts(_REDUCED)),
        _alone("the-experts-reduce", experts(""), init="self.experts = FusedMoE(config, reduce_results=True)"),
        _alone(
            "built-for-one-rank", experts(""), init="self.experts = FusedMoE(config, reduce_results=False, tp_size=1)"
        ),
        _alone(
            "reduced-under-another-name",
            experts("x = self.reducer.reduce_over_ranks(x)"),
        ),
        _alone(
            "handed-on-as-a-value",
            experts(_REDUCED),
            init=f"{_SHARED}\nself.experts = FusedMoE(config, shared=self.shared_experts)",
        ),
        _alone(
            "handed-on-in-an-arm-of-a-value",
            experts(_REDUCED),
            init=f"{_SHARED}\nself.experts = FusedMoE(config, shared=(None if config.apart else self.shared_experts))",
        ),
        _alone(
            "handed-on-under-another-name",
            experts(_REDUCED),
            init=f"{_SHARED}\nshared = self.shared_experts or None\nself.experts = FusedMoE(config, shared=shared)",
        ),
        _alone(
            "summed-with-the-routed-experts",
            experts(
                """
                x = x + self.shared_experts(x)
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)
                """
            ),
            init=f"{_EXPERTS}\n{_SHARED}",
        ),
        _alone("handed-to-who-cannot-be-followed", experts("x = settle(x)"), init=_EXPERTS),
        _alone(
            "joined-by-who-cannot-be-followed",
            method("x = settle(self.experts(x), self.shared_experts(x))"),
            init=f"self.experts = FusedMoE(config)\n{_SHARED}",
        ),
        layer_case(
            "handed-by-the-layer-to-who-cannot-be-followed",
            block("def forward(self, x):\n    return self.experts(x)", init=_EXPERTS),
            layer="x = self.mlp(x)\nx, residual = self.exit.finish(x, residual)",
        ),
        _alone(
            "only-behind-an-a2a-backend",
            method("\nif get_moe_a2a_backend().is_deepep():\n    x = self.experts(x)"),
        ),
        _alone("by-default-and-the-block-reduces", experts(_REDUCED), init=_BY_DEFAULT, more=_CHOSEN),
        _alone(
            "the-default-is-to-reduce",
            experts(""),
            init=_BY_DEFAULT,
            more=_CHOSEN.replace("reduce_results=False", "reduce_results=True"),
        ),
        _alone(
            "the-default-is-taken-back",
            experts(""),
            init=_BY_DEFAULT,
            more=_CHOSEN.replace("        self.red", "        reduce_results = config.sums\n        self.red", 1),
        ),
        _alone("told-to-reduce", experts(""), init="self.experts = chosen(config)(config, True)", more=_CHOSEN),
        _alone(
            "what-is-chosen-differs", experts(""), init="self.experts = chosen_of_others(config)(config)", more=_CHOSEN
        ),
        _alone("an-argument-is-not-seen", experts(""), init="self.experts = FusedMoE(config, **given)", more=_CHOSEN),
        _own("own-weights-that-the-block-sums", _REDUCED),
        _own("own-weights-that-a-group-sums", "x = get_tp_group().all_reduce(x)"),
        _own("own-weights-that-another-method-sums", "x = self.summed(x)", _WIDTH, method(_REDUCED, "summed", "x")),
        _own("own-weights-handed-to-who-cannot-be-followed", "x = settle(x)"),
        _own("own-weights-reduced-under-another-name", "x = self.reducer.reduce_over_ranks(x)"),
        _own("own-weights-that-are-whole", "", "config.width"),
        _own("own-weights-for-one-rank", build="Block(config, tp_size=1)"),
        _own("own-weights-and-a-kernel-that-sums", run="fused_experts(x, self.w1, reduce_results=True)"),
        layer_case("left-to-the-layer-when-it-asks", block(experts(ROUTED), init=_EXPERTS), layer=_LAYER),
        layer_case(
            "reduced-by-the-layer",
            block("def forward(self, x):\n    return self.experts(x)", init=_EXPERTS),
            layer=f"x = self.mlp(x)\nx = tensor_model_parallel_all_reduce(x)\n{_LAYER.splitlines()[1]}",
        ),
        layer_case(
            "always-left-to-the-next-layer",
            block("def forward(self, x):\n    return self.experts(x)", init=_EXPERTS),
            layer="x = self.mlp(x)\nx._sglang_needs_allreduce_fusion = True",
        ),
    )
    INVALID = (
        _own("own-weights", mark=_MARKED),
        _own("own-weights-by-a-function", "", "divide(config.width, self.tp_size)", mark=_MARKED),
        _own("own-weights-of-some-experts", "x = x.view(-1)", "config.experts // self.tp_size", mark=_MARKED),
        _alone("experts", experts(""), init=_EXPERTS + _MARKED),
        _alone("experts-by-default", experts(""), init=_BY_DEFAULT + _MARKED, more=_CHOSEN),
        _alone(
            "experts-that-are-chosen", experts(""), init=f"self.experts = chosen(config)(config){_MARKED}", more=_CHOSEN
        ),
        _alone(
            "behind-a-question-for-backends",
            method("\nif not is_deepep_class_backend():\n    return self.routed(x)"),
            "def routed(self, x):\n    return self.experts(x)",
            init=_EXPERTS + _MARKED,
        ),
        _alone(
            "shared-experts-that-join-behind",
            experts(
                "if self.tp_size > 1:\n    x = tensor_model_parallel_all_reduce(x)\nx = x + self.shared_experts(x)"
            ),
            init=f"{_EXPERTS}\n{_SHARED}{_MARKED}",
        ),
        _alone(
            "shared-experts-that-join-what-an-unknown-function-gathers",
            method("y = gathered(self.experts(x))\nx = y + self.shared_experts(x)"),
            init=f"self.experts = FusedMoE(config)\n{_SHARED}{_MARKED}",
        ),
        _alone(
            "shared-experts-that-are-only-looked-at-elsewhere",
            method(
                """
                dtype = self.shared_experts.dtype if isinstance(self.shared_experts, MLP) else None
                if self.shared_experts is not None and self.shared_experts:
                    x = self.shared_experts(x.to(dtype))
                """
            ),
            init=f"self.experts = FusedMoE(config)\n{_SHARED}{_MARKED}",
        ),
        _alone(
            "a-projection-behind-the-experts",
            experts("x = self.down_proj(x)"),
            init=f"self.experts = FusedMoE(config)\n{_DOWN}{_MARKED}",
        ),
        _alone(
            "through-a-method",
            "def forward(self, x):\n    return self.routed(x)[0]",
            "def routed(self, x):\n    y = self.experts(x)\n    return y, x",
            init=_EXPERTS + _MARKED,
        ),
        layer_case(
            "left-to-a-communicator-that-was-not-asked",
            block("def forward(self, x):\n    return self.experts(x)", init=_EXPERTS + _MARKED),
            layer=_LAYER,
        ),
        layer_case(
            "left-to-the-next-layer-only-sometimes",
            block("def forward(self, x):\n    return self.experts(x)", init=_EXPERTS + _MARKED),
            layer=ASK + "x = self.mlp(x)" + SETTLE,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        if not _may_be_told(context):
            return
        for part in unreduced(context):
            yield at_part(
                self,
                part,
                f"`self.{part.attribute}` is built {_as_told(part)}, and nobody reduces what it returns, neither "
                f"`{part.owner.name}` nor the layer around it: each rank keeps its own partial sum"
                f"{launch(context, TRUE)}",
                f"reduce in `{part.owner.name}`, or build it with `{context.index.profile.reducing[0]}=True`",
            )
        for own in own_experts(context):
            if nobody_sums(own, context):
                yield self._of_own_weights(own, context)

    def _of_own_weights(self, own: OwnExperts, context: Context) -> Finding:
        block, callee = own.owner.name, own.call.callee
        return Finding(
            self.code,
            self.name,
            own.owner.path,
            own.call.span,
            self.severity,
            self.confidence,
            f"`{own.weight}` is one rank's part of the experts (`{own.part}`), and nobody reduces what `{callee}` makes"
            f" of it, neither `{block}` nor a layer around: each rank keeps its partial sum{launch(context, TRUE)}",
            own.method.name.rpartition(".")[2],
            block,
            remedy=f"reduce what `{callee}` returns",
        )


def _may_be_told(context: Context) -> bool:
    """Not where it is not known who sums, where the layer boundary takes sums by contract, or the experts decide."""
    policy = context.policy
    return policy.helper is not None and absorbers_of(policy).asked and not _experts_decide(context)


@remembered
def unreduced(context: Context) -> tuple[Part, ...]:
    """The layers of blocks of experts whose output nobody reduces.

    The shared experts of a block are left out where nobody reduces its routed ones either: one sum is missing.
    """
    found = [part for part in _partial(context) if _leaves_unsummed(part, context)] if _may_be_told(context) else []
    is_routed = context.index.profile.is_expert_attribute
    routed = {part.owner for part in found if is_routed(part.attribute)}
    return tuple(part for part in found if part.owner not in routed or is_routed(part.attribute))


def _as_told(part: Part) -> str:
    return f"with `{part.by}`" if part.explicit else f"not to reduce, by {part.by}"


def _experts_decide(context: Context) -> bool:
    """Whether the helper is the expert layer's own, and that layer sums where it says so."""
    helper = context.policy.helper
    return (
        helper is not None
        and helper.owner is not None
        and any(
            site.path == helper.path and site.raw.class_name == helper.owner and site.route is Route.HELPER
            for site in context.sites
            if site.method not in context.index.profile.wrappers
        )
    )


def _partial(context: Context) -> Iterator[Part]:
    """The layers of blocks of experts that do not reduce: they are told so, or that is their default."""
    yield from _told_not_to(context)
    yield from _by_default(context)


def _by_default(context: Context) -> Iterator[Part]:
    """The experts that nobody tells whether to reduce, and that do not by default."""
    index, profile = context.index, context.index.profile
    for path in sorted(index.texts):
        lines = index.lines_that(path, "build experts", partial(_building_lines, index, path))
        facts = index.facts(path) if lines else None
        for name in dict.fromkeys(facts.class_at(line) for line in lines) if facts is not None else ():
            if name is not None:
                found = parts(context.callers, Ref(path, name), profile.is_expert_attribute)
                yield from (part for part in found if part.sums is False and not part.explicit)


def _building_lines(index: ProjectIndex, path: str) -> Iterator[int]:
    """The lines on which an attribute for experts is set to what a call returns."""
    for word in {longest_part(pattern) for pattern in index.profile.expert_attributes}:
        for number in dict.fromkeys(index.lines_of(path, word)):
            if any(map(index.profile.is_expert_attribute, _BUILT.findall(index.line(path, number)))):
                yield number


def _told_not_to(context: Context) -> Iterator[Part]:
    """The layers of blocks of experts that are told not to reduce."""
    index, profile = context.index, context.index.profile
    words = [f"{name}=False" for name in profile.reducing]
    for path in sorted({path for word in words for path in index.holding(word)}):
        facts = index.facts(path)
        lines = [line for word in words for line in index.lines_of(path, word)]
        owners = dict.fromkeys(facts.class_at(line) for line in lines) if facts is not None else {}
        for name in owners:
            found = list(constructed(context.callers, Ref(path, name))) if name is not None else []
            of_experts = any(profile.is_expert_attribute(attribute) for attribute, _ in found)
            for attribute, call in found:
                passed = told(call, profile.reducing)
                ours = (of_experts or profile.is_shared(attribute)) and not profile.is_barrier(attribute)
                if ours and passed is not None and passed.literal is False:
                    yield part_of(context.callers, Ref(path, name or ""), attribute, call)


def _leaves_unsummed(part: Part, context: Context) -> bool:
    index = context.index
    alone = conj((negate(part.whole), no_backend((part.whole,), context.policy)))
    if not context.callers.possible(context.policy.opened(alone)):
        return False
    if any(p.hides and p.given is None for p in part.call.arguments):
        return False
    output = OutputOf(index, part.owner, part.attribute)
    near = [site for site in context.sites if site.path == part.path]
    if _is_reduced(output, near):
        return False  # nearly always
    if not _is_run(part, context) or _is_handed_on(part, context):
        return False
    if _sums_all_the_same(part, context) or calls_a_reducer(part.owner, context):
        return False
    entries = [m for name in ("forward", "__call__") if (m := index.method(part.owner, name)) is not None]
    if not any(output.leaves(entry) for entry in entries):
        return False
    if _is_reduced(output, (site for site in context.sites if site.path != part.path)):
        return False
    seen = any(True for _ in context.ways.unsummed(part.owner, "TP", part.attribute))
    return seen and _nobody_absorbs(part, context) and not _goes_unseen(part, output, context)


def _is_reduced(output: OutputOf, sites: Iterable[Site]) -> bool:
    """Whether one of these reductions sums what the layer returns."""
    places = (
        (site, Where(site.path, site.raw.class_name, site.raw.function.removesuffix(".<lambda>"))) for site in sites
    )
    return any(output.reaches(site.raw.origins, where) for site, where in places)


def _goes_unseen(part: Part, output: OutputOf, context: Context) -> bool:
    """Whether a layer around the block hands the output to something that cannot be followed, and so may sum it."""
    index = context.index
    for layer in absorbers_of(context.policy).layers(part.owner):
        facts = index.facts(layer.path)
        if facts is None or layer == part.owner or layer.name not in facts.classes:
            continue
        for name in facts.functions_in(layer.name):
            where = Where(layer.path, layer.name, name)
            for call in facts.function(name).calls:
                given = any(output.reaches(argument.origins, where) for argument in call.arguments)
                if given and not _is_seen(call.callee, layer, context):
                    return True
    return False


def _is_seen(callee: str, layer: Ref, context: Context) -> bool:
    """Whether what is called is known: code of the tree, a library, an absorber, or a layer that sums nothing."""
    index, last = context.index, callee.rsplit(".", 1)[-1]
    owner = callee.split(".")[1] if callee.startswith("self.") and callee.count(".") == 2 else ""
    facts = index.facts(layer.path)
    module, _ = facts.imports.get(callee.partition(".")[0], ("", None)) if facts is not None else ("", None)
    return (
        bool(list(index.targets(layer.path, layer.name, callee)))
        or any(index.is_absorber(built) for built in (index.built_classes(layer, owner) if owner else ()))
        or any(map(context.policy.profile.is_barrier, (last, owner)))
        or bool(module and index.module_path(module, layer.path) is None)
        or hasattr(builtins, callee)
    )


def _nobody_absorbs(part: Part, context: Context) -> bool:
    """Whether no layer around takes the sum over in the state in which none has asked the block to leave it out."""
    absorber = context.index.has_absorber(part.owner)
    if absorber is None:
        return False
    around = set(absorbers_of(context.policy).layers(part.owner))
    if any(calls_a_reducer(layer, context) for layer in around if not context.index.constructs_absorber(layer)):
        return False
    flags = [flag.name for flag in context.index.profile.flags]
    for layer in context.callers.layers if absorber else ():
        if layer.owner in around:
            if not all(_is_asked(built.owner, context) for built in layer.absorbers):
                return False  # a boundary that takes sums by contract
            for mark in context.callers.marks(layer):
                for flag in flags:
                    mark = assign(mark, flag, FALSE)
                if context.callers.possible(mark):
                    return False
    return True


def _is_asked(absorber: Ref, context: Context) -> bool:
    """Whether an absorber sums only when the layer has asked it whether it will, and told the block so."""
    questions = [flag.predicate for flag in context.index.profile.flags if flag.predicate]
    return not questions or any(context.index.method(absorber, name) is not None for name in questions)


def _is_run(part: Part, context: Context) -> bool:
    """Whether the layer runs, and is no replicated one, where no a2a backend is in use."""
    for _, call in _runs(part, context):
        sharded = conj((call.condition, negate(part.whole)))
        reached = context.policy.opened(without_topology(sharded, context.index.profile))
        if context.callers.possible(conj((reached, no_backend((reached,), context.policy)))):
            return True
    return False


def _runs(part: Part, context: Context) -> Iterator[tuple[Ref, Call]]:
    """The calls of the layer by its class, each with the function that makes it."""
    facts = context.index.facts(part.path)
    for name in facts.functions_in(part.owner.name) if facts is not None else ():
        function = Ref(part.path, name)
        conduct = context.callers.conduct(function)
        for call in conduct.calls if conduct is not None else ():
            if call.callee == f"self.{part.attribute}" or call.callee.startswith(f"self.{part.attribute}."):
                yield function, call


def _sums_all_the_same(part: Part, context: Context) -> bool:
    """Whether the layer reaches a reduction of its own although it is told not to reduce."""
    callers, instance = context.callers, Instance(part.owner)
    for function in dict.fromkeys(function for function, _ in _runs(part, context)):
        for edge in callers.onward(Frame(function, instance)):
            if edge.built is not None and edge.built.attribute == part.attribute:
                if any(callers.possible(found.condition) for found in callers.sums(edge)):
                    return True
    return False


def _is_handed_on(part: Part, context: Context) -> bool:
    """Whether the layer itself is passed to somebody, who may run it and sum."""
    facts = context.index.facts(part.path)
    return facts is not None and facts.hands_on(part.owner.name, part.attribute)
