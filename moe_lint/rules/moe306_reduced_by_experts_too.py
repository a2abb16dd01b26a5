from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from textwrap import indent

from moe_lint.dataflow import OutputOf, Where
from moe_lint.facts.conduct import Addition
from moe_lint.formula import FALSE, TRUE, Atom, Formula, TooManyAtoms, atom_set, conj, disj, negate, satisfiable
from moe_lint.helper import find_definition
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Finding, Related, Route
from moe_lint.profile import matches
from moe_lint.reaching import reaching
from moe_lint.rules._blocks_below import whole_blocks
from moe_lint.rules._cases import ROUTED, Piece, block, experts, layer_case, method, when_read
from moe_lint.rules._layers import launch
from moe_lint.rules._parts import Part, parts, quoted
from moe_lint.rules._terms import counts_once
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.rules.moe309_reduced_twice import one_too_many
from moe_lint.sites import Site, is_skip_atom

_LAYER = "x = self.mlp(x)\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)"
_MARKED = ROUTED.replace("_reduce(x)", "_reduce(x)  # <- MOE306")
_JOINS = "x = x + shared\n" + ROUTED
_JOINS_MARKED = "x = x + shared\n" + _MARKED
_REPLICATED = "reduce_results=False, **(dict(tp_size=1) if should_use_flashinfer_cutlass_moe_fp4_allgather() else {})"
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")
#: A dense layer that reduces by default, as the projection in it does.
_MLP = """
class RowParallelLinear:
    def __init__(self, config, reduce_results=True, tp_size=None):
        self.reduce_results = reduce_results


class MLP:
    def __init__(self, config, tp_size=None, **options):
        self.down_proj = RowParallelLinear(config)

    def forward(self, x):
        x, _ = self.down_proj(x)
        return x


class OwnedMLP:
    def __init__(self, config, reduce_results=True, tp_size=None):
        self.down_proj = RowParallelLinear(config, reduce_results=reduce_results)

    def forward(self, x):
        x, _ = self.down_proj(x)
        return x
"""


def _indented(text: str) -> str:
    return indent(text.strip(), "    ")


_SHARED_MLP = """
class SharedMLP:
    def __init__(self, config, is_shared=False, reduce_results=True):
        if is_shared:
            reduce_results = False
        self.down_proj = RowParallelLinear(config, reduce_results=reduce_results)

    def forward(self, x):
        x, _ = self.down_proj(x)
        return x
"""
_FACTORY = """
def FusedMoEFactory(config, reduce_results=True):
    return make_runner(config, reduce_results)
"""
_WRAPPER = """

def reduce_moe_output(x):
    if get_tp_world_size() > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
        x = tensor_model_parallel_all_reduce(x)
    return x
"""
_JOINED = """
def joined(self, x, shared):
    return x + shared / self.tp_size
"""
_WIDENED = """
def widened(self, x, shared):
    return self.wide(x) + shared
"""


def _with_shared(name: str, arguments: str, body: str, *more: Piece) -> Case:
    """A block with shared experts, built with these arguments, whose output is `shared` when the body starts."""
    options = f", {arguments}" if arguments else ""
    dense = "OwnedMLP" if "reduce_results" in arguments else "MLP"
    init = f"self.experts = FusedMoE(config, reduce_results=False)\nself.shared_experts = {dense}(config{options})"
    forward = experts(f"shared = self.shared_experts(x)\n{body}")
    return layer_case(name, _MLP, block(forward, *more, init=init), layer=_LAYER)


@when_read
def _wrapped(name: str, condition: str, mark: str = "") -> Case:
    """A block that adds shared experts, replicated where the condition holds, before it calls a wrapper."""
    plain = _with_shared(
        name,
        f"reduce_results=False, **(dict(tp_size=1) if {condition} else {{}})",
        f"x = x + shared\nx = reduce_moe_output(x){mark}",
    )
    path = "engine/layers/moe/utils.py"
    return Case(name, {**plain.files, path: plain.files[path] + _WRAPPER})


@when_read
def _in_layer(name: str, told: str, *lines: str, build: str = "", condition: str = "") -> Case:
    """A layer that sums what its block returned, whose experts are ``told`` who sums."""
    init = f"self.experts = FusedMoEFactory(config{told})"
    run = method("x = self.experts(x)", parameters="x")
    reduced = "x = tensor_model_parallel_all_reduce(x)"
    body = (f"{condition}\n    {reduced}" if condition else reduced) if not lines else "\n".join(lines)
    decoder = f"{method(f'x = self.mlp(x){chr(10)}{body}', parameters='x')}"
    plain = layer_case(name, _FACTORY, block(run, init=init), layer="x = self.mlp(x)")
    path = "engine/models/pretend.py"
    head, _, _ = plain.files[path].partition("class DecoderLayer:")
    made = f"def __init__(self, config):\n    self.mlp = Block(config)\n{build and indent(build, '    ')}\n"
    layer = f"class DecoderLayer:\n{indent(made + chr(10) + decoder, '    ')}"
    model = "class Model:\n    def __init__(self, config):\n        self.layers = [DecoderLayer(config)]\n"
    return Case(name, {**plain.files, path: f"{head}{layer}\n\n{model}"})


class ReducedByExpertsToo(Rule):
    """The experts, or the shared experts, are whole already, and the block reduces them again.

    `reduce_results=True` makes a layer sum over the ranks before it returns. A reduction in the block on top of that
    sums what is already whole: every token is scaled by the group size. Two owners are as wrong as none. For the shared
    experts the keyword is often the default, so a forgotten `reduce_results=False` is enough: their term is added to
    the routed experts' partial sum and counted once for every rank. A replicated shared expert (`tp_size=1`) is whole
    in the same way.

    Instead of

        self.shared_experts = MLP(...)  # reduces by default
        ...
        x = self.experts(x, topk_output) + self.shared_experts(x)
        x = tensor_model_parallel_all_reduce(x)

    give the sum one owner, the block, which can ask the helper:

        self.shared_experts = MLP(..., reduce_results=False)

    A term that is divided by the number of ranks or added on the first rank alone counts once and is not reported, nor
    is one that joins behind the reduction. A shared expert that is replicated in some configurations only is reported
    where it can be told that the term joins, and the reduction runs, in one of them. A function that is patched in
    place of a method (`Block.forward = patched`, or by a decorator that is given its name) counts as that method. A
    layer that always sums what its block returned counts, too, if the block's experts were made to sum; not where
    somebody sets on them who sums. Reported at the reduction. There is no fix: a block without skip reasons may as well
    drop its own.
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
        _with_shared("shared-experts-left-to-the-block", "reduce_results=False", _JOINS),
        layer_case(
            "shared-experts-whose-constructor-takes-the-default-back",
            _SHARED_MLP,
            block(
                experts("x = x + self.shared_experts(x)\n" + ROUTED.strip()),
                init="self.experts = FusedMoE(config, reduce_results=False)\n"
                "self.shared_experts = SharedMLP(config, is_shared=True)",
            ),
            layer=_LAYER,
        ),
        layer_case(
            "dense-where-the-block-calls-experts",
            _MLP,
            block(
                method("x = self.experts(hidden_states=x, topk_output=None)\n" + ROUTED.strip()),
                init="if config.sparse:\n    self.experts = FusedMoE(config, reduce_results=False)\n"
                "else:\n    self.experts = MLP(config)",
            ),
            layer=_LAYER,
        ),
        _with_shared("shared-experts-divided", "", "x = x + shared / self.tp_size\n" + ROUTED),
        _with_shared(
            "shared-experts-on-the-first-rank",
            "reduce_results=True",
            "if self.tp_rank == 0:\n    x = x + shared\n" + ROUTED,
        ),
        _with_shared("shared-experts-behind", "tp_size=1", ROUTED.strip() + "\nx = x + shared"),
        _with_shared("replicated-only-where-nothing-is-reduced", _REPLICATED, _JOINS),
        _with_shared(
            "replicated-where-it-joins-behind",
            "reduce_results=False, **(dict(tp_size=1) if self.ep_size > 1 else {})",
            f"if self.ep_size > 1:\n{_indented(ROUTED)}\n    x += shared\nelse:\n    x += shared\n{_indented(ROUTED)}",
        ),
        _with_shared(
            "replicated-where-the-method-is-not-called",
            "reduce_results=False, **(dict(tp_size=1) if self.whole else {})",
            "x = x if self.whole else self.summed(x, shared)",
            method("\nx = x + shared\nx = tensor_model_parallel_all_reduce(x)", "summed", "x, shared"),
        ),
        _with_shared(
            "replicated-and-joined-on-a-condition-of-its-own",
            "reduce_results=False, **(dict(tp_size=1) if get_moe_a2a_backend().is_mori() else {})",
            "if self.narrow:\n    x = x + shared\n" + ROUTED,
        ),
        _with_shared(
            "replicated-and-handed-to-a-method-that-divides",
            "reduce_results=False, **(dict(tp_size=1) if get_moe_a2a_backend().is_mori() else {})",
            "if self.narrow:\n    x = self.joined(x, shared)\nelse:\n    x = x + shared\n" + ROUTED,
            _JOINED,
        ),
        _with_shared(
            "replicated-and-looked-at-behind",
            "reduce_results=False, **(dict(tp_size=1) if get_moe_a2a_backend().is_mori() else {})",
            "if self.narrow:\n    x = self.widened(x, shared)\nelse:\n    x = x + shared\n"
            + ROUTED.strip()
            + "\nx = self.corrected(x, shared)",
            _WIDENED,
        ),
        _wrapped("replicated-where-the-wrapper-skips", "should_use_flashinfer_cutlass_moe_fp4_allgather()"),
        _in_layer("experts-that-leave-their-sum-to-the-layer", ", reduce_results=False"),
        _in_layer("experts-that-may-leave-it", ", reduce_results=config.alone"),
        _in_layer("a-layer-that-asks-its-block", ", reduce_results=True", condition="if self.mlp.left:"),
        _in_layer(
            "a-layer-that-says-so-to-the-experts",
            ", reduce_results=True",
            build="self.mlp.experts.config.reduce_results = False",
        ),
        _in_layer(
            "a-layer-that-sums-attention",
            ", reduce_results=True",
            "y = self.attention(x)",
            "y = tensor_model_parallel_all_reduce(y)",
        ),
        _with_shared("divided-in-another-method", "", "x = self.joined(x, shared)\n" + ROUTED, _JOINED),
    )
    INVALID = (
        _in_layer(
            "summed-in-the-layer", ", reduce_results=True", "x = tensor_model_parallel_all_reduce(x)  # <- MOE306"
        ),
        _in_layer(
            "in-another-shape-summed-in-the-layer",
            ", reduce_results=True",
            "x = tensor_model_parallel_all_reduce(x.view(-1))  # <- MOE306",
        ),
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
        _with_shared("shared-experts-that-reduce", "reduce_results=True", _JOINS_MARKED),
        _with_shared("shared-experts-that-reduce-by-default", "", _JOINS_MARKED),
        _with_shared("replicated-shared-experts", "reduce_results=False, tp_size=1", _JOINS_MARKED),
        _with_shared("shared-experts-joined-in-place", "", "x.add_(shared)\n" + _MARKED),
        _with_shared(
            "replicated-where-something-is-reduced",
            "reduce_results=False, **(dict(tp_size=1) if get_moe_a2a_backend().is_mori() else {})",
            _JOINS_MARKED,
        ),
        _with_shared(
            "replicated-and-joined-in-either-arm",
            "reduce_results=False, **(dict(tp_size=1) if get_moe_a2a_backend().is_mori() else {})",
            "if self.narrow:\n    x = self.widened(x, shared)\nelse:\n    x = x + shared\n" + _MARKED,
            _WIDENED,
        ),
        _wrapped("replicated-where-the-wrapper-reduces", "get_moe_a2a_backend().is_mori()", "  # <- MOE306"),
        _with_shared("divided-by-something-else", "", "x = x + shared / self.scale\n" + _MARKED),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for site in context.sites:
            if not site.post_experts or site.axis == "other" or _owned(site, context):
                continue
            if site in one_too_many(context):
                continue
            method = _method(site, context)
            for part, shown in _whole_parts(site, method, context) if method is not None else ():
                why = (
                    f"has summed already, built with {quoted(part.by)}"
                    if part.sums is True
                    else "is whole on every rank"
                )
                told = f" (for example {shown})" if shown is not None else ""
                yield self._report(
                    site,
                    part,
                    f"what `self.{part.attribute}` returns {why}: this reduction {_consequence(part, context)}{told}",
                    context,
                )
                break
            else:
                yield from self._below(site, context)

    def _below(self, site: Site, context: Context) -> Iterator[Finding]:
        """A reduction in a layer, of what its block returned."""
        for below in whole_blocks(site, context):
            part = below.experts
            yield self._report(
                site,
                part,
                f"what `self.{below.attribute}` returns has been summed by the experts of `{below.owner.name}`, built "
                f"with {quoted(part.by)}: this reduction scales every token by the group size{launch(context, TRUE)}",
                context,
            )
            break

    def _report(self, site: Site, part: Part, message: str, context: Context) -> Finding:
        built = Related(part.path, part.call.span.line, f"`self.{part.attribute}` is built here")
        return self.finding(site, message, context, related=(built,), remedy=_remedy(part, context))


def reduces_what_is_whole(site: Site, context: Context) -> bool:
    """Whether a reduction is one of what its block's experts were built to sum for themselves, and is told here."""
    method = _method(site, context) if site.axis != "other" and not _owned(site, context) else None
    found = _whole_parts(site, method, context) if method is not None else ()
    profile = context.index.profile
    return any(part.sums is True and profile.is_expert_attribute(part.attribute) for part, _ in found)


def _consequence(part: Part, context: Context) -> str:
    if context.index.profile.is_expert_attribute(part.attribute):
        return "scales every token by the group size"
    return "counts it once for every rank"


def _remedy(part: Part, context: Context) -> str:
    keyword = context.index.profile.reducing[0]
    if part.sums is True:
        return f"build `self.{part.attribute}` with `{keyword}=False`, or drop this reduction"
    return f"add what `self.{part.attribute}` returns behind the reduction, where that has run"


def _owned(site: Site, context: Context) -> bool:
    """Whether an ownership parameter takes part in the decision."""
    ownership = context.index.profile.ownership
    return any(name in str(part.text) for part in site.raw.guard for name in ownership)


def _method(site: Site, context: Context) -> Ref | None:
    """The method that a site stands in, or that its function is patched in place of."""
    function = Ref(site.path, site.raw.function.removesuffix(".<lambda>"))
    return function if site.raw.class_name is not None else context.index.patched(function)


def _whole_parts(site: Site, method: Ref, context: Context) -> Iterator[tuple[Part, Configuration | None]]:
    """The experts and shared experts that a site reduces although they are whole, with a configuration of that."""
    profile = context.index.profile

    def asked(attribute: str) -> bool:
        return profile.is_expert_attribute(attribute) or profile.is_shared(attribute)

    owner = site.raw.class_name or method.name.rpartition(".")[0]
    for ref in context.index.mro(Ref(method.path, owner)):
        for part in parts(context.callers, ref, asked):
            experts = profile.is_expert_attribute(part.attribute)
            whole = TRUE if part.sums is True else FALSE if experts else part.whole
            if whole == FALSE or _refuses_its_calls(part, site, context) or not _is_reduced(part, site, context):
                continue
            joined = TRUE if experts else _joined(part, site, whole, context)
            runs, called = _runs(site, method, context)
            if not called and whole != TRUE:
                continue  # perhaps the function is not called where the part is whole
            shown = context.policy.configuration(conj((whole, joined, runs)), site.axis, site.raw.collective)
            if shown is not None:
                yield part, shown


def _refuses_its_calls(part: Part, site: Site, context: Context) -> bool:
    """Whether what is built here cannot be called as the block calls the part: it fails at once, and sums nothing."""
    callers, index = context.callers, context.index
    built = [b.owner for b in callers.built(part.owner).get(part.attribute, ()) if b.call.span == part.call.span]
    forwards = [callers.conduct(run) if (run := index.method(b, "forward")) is not None else None for b in built]
    conduct = callers.conduct(Ref(site.path, site.raw.function))
    calls = [c for c in conduct.calls if c.callee == f"self.{part.attribute}"] if conduct is not None else []
    given = [{argument.keyword for argument in call.arguments} - {None} for call in calls]
    return bool(given and forwards) and all(
        forward is not None and forward.variadic[1] is None and not keywords <= set(forward.params)
        for forward in forwards
        for keywords in given
    )


def _is_reduced(part: Part, site: Site, context: Context) -> bool:
    where = Where(site.path, site.raw.class_name, site.raw.function.removesuffix(".<lambda>"))
    return OutputOf(context.index, part.owner, part.attribute).reaches(site.raw.origins, where)


def _runs(site: Site, method: Ref, context: Context) -> tuple[Formula, bool]:
    """When a site runs, sizes of groups included, and whether that says everything about what calls its function."""
    above = reaching(context.index, method, site.raw.class_name) if site.raw.class_name is not None else TRUE
    known = above != TRUE or method.name.rsplit(".", 1)[-1] in ("forward", "__call__")
    if site.route is Route.WRAPPER:
        definition = find_definition(context.index, site.raw.collective)
        inside = context.callers.sums_of(definition) if definition is not None else ()
        above = conj((above, disj(found.condition for found in inside)))
    return context.policy.with_helper(conj((*(part.formula for part in site.raw.guard), above))), known


def _joined(part: Part, site: Site, whole: Formula, context: Context) -> Formula:
    """When the shared experts' term joins what a site reduces, in a way that counts it once for every rank.

    FALSE where that is not known: a term that is whole in some configurations only, and joins out of sight or under
    conditions of its own.
    """
    profile = context.index.profile
    here = [a for a in _additions(Ref(site.path, site.raw.function), context) if a.span < site.raw.span]
    if not here:
        facts = context.index.facts(part.path)
        methods = facts.functions_in(part.owner.name) if facts is not None else ()
        all_ = [addition for name in methods for addition in _additions(Ref(part.path, name), context)]
        return TRUE if whole == TRUE and not any(counts_once(addition, profile) for addition in all_) else FALSE
    ways = [a.condition for a in here if not counts_once(a, profile)]
    joined = disj((*ways, *_handed_to_a_sum(site, context)))
    own = {
        name
        for name in atom_set(joined) - atom_set(whole)
        if not name.endswith(" is None") and profile.launch.meaning(name) is None and not is_skip_atom(name, profile)
    }
    alike = not own or (_always(joined) and not _named_behind(site, context))
    return joined if whole == TRUE or alike else FALSE


def _always(joined: Formula) -> bool:
    """Whether one way or another a term joins wherever there is one."""
    absent = [name for name in atom_set(joined) if name.endswith(" is None")]
    try:
        return not satisfiable(conj((negate(joined), *(negate(Atom(name)) for name in absent))))
    except TooManyAtoms:
        return False


def _named_behind(site: Site, context: Context) -> bool:
    """Whether the function names the shared experts' term again behind a site."""
    facts = context.index.facts(site.path)
    if facts is None:
        return False
    _, last = facts.extent(site.raw.function)
    return _names_shared(facts.lines.block(site.raw.span.end_line + 1, last), context)


def _handed_to_a_sum(site: Site, context: Context) -> Iterator[Formula]:
    """When the shared experts' term is handed, before the site, to a method of the class that adds it."""
    profile, index = context.index.profile, context.index
    conduct = context.callers.conduct(Ref(site.path, site.raw.function))
    for call in conduct.calls if conduct is not None else ():
        name = call.callee.removeprefix("self.")
        given = any(_names_shared(argument.text, context) for argument in call.arguments)
        if call.callee != f"self.{name}" or not given or not call.span < site.raw.span:
            continue
        method = index.method(Ref(site.path, site.raw.class_name or ""), name)
        inside = _additions(method, context) if method is not None else []
        if inside and not any(counts_once(addition, profile) for addition in inside):
            yield call.condition


def _additions(function: Ref, context: Context) -> list[Addition]:
    """The terms that a function adds which are the shared experts', by their names."""
    conduct = context.callers.conduct(function)
    additions = conduct.additions if conduct is not None else ()
    return [a for a in additions if _names_shared(f"{a.term} {a.target}", context)]


def _names_shared(text: str, context: Context) -> bool:
    return any(matches(word, context.index.profile.shared) for word in _WORD.findall(text))
