from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from moe_lint.expressions import nodes
from moe_lint.facts import CallResult, FileFacts, Origins, Param
from moe_lint.facts.conduct import Addition, Conduct
from moe_lint.formula import TRUE, Formula, conj
from moe_lint.index import Ref
from moe_lint.model import Finding, Related
from moe_lint.profile import Profile
from moe_lint.rules._cases import BARE, ROUTED, case, experts, method, when_read
from moe_lint.rules._layers import launch
from moe_lint.rules._terms import counts_once
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site

_SUM = "\nif self.tp_size > 1:\n    out = tensor_model_parallel_all_reduce(out)\nreturn out"
_MARKED = _SUM.replace("(out)", "(out)  # <- MOE311")


@when_read
def _layer(name: str, layer: str) -> Case:
    """A block that leaves its sum to the layer around it."""
    plain = case(name, experts("return x", parameters="x"), absorber=False, layer=layer)
    path = "engine/models/pretend.py"
    model = "class Model:\n    def __init__(self, config):\n        self.layer = DecoderLayer(config)\n"
    return Case(name, {**plain.files, path: f"{plain.files[path]}\n\n{model}"})


class InputInTheSum(Rule):
    """A block adds its own input, or a residual, to what its experts computed, and sums both over the ranks.

    The experts' output is a partial sum, the block's input is whole on every rank. Added before the reduction, it is
    counted once for every rank: the residual stream is scaled by the group size, layer after layer.

    Instead of

        out = self.experts(x) + x
        out = tensor_model_parallel_all_reduce(out)

    add what is whole to what is whole:

        out = self.experts(x)
        out = tensor_model_parallel_all_reduce(out)
        out = out + x

    Looked at are terms that are a parameter of the function, under its name or another, and are what its experts were
    given, or what it norms (a layer that sums what its block returned). Not reported: a term that is divided by the
    number of ranks or added on the first rank alone.
    Reported at the reduction. There is no fix: where the reduction may be left to others, the term has to join behind
    whoever makes it.
    """

    code = "MOE311"
    name = "input-in-the-sum"
    VALID = (
        case("added-behind", experts(f"{ROUTED.strip()}\nx = x + residual", parameters="x, residual"), absorber=False),
        case(
            "the-experts-output-under-the-same-name",
            method("x = self.experts(x)\nshared = self.shared(x)\nx = x + shared" + BARE),
            absorber=False,
        ),
        case(
            "what-a-caller-computed",
            method("out = self.experts(x)\nout = out + shared" + _SUM, parameters="x, shared"),
            absorber=False,
        ),
        case(
            "on-the-first-rank-alone",
            method("out = self.experts(x)\nif self.tp_rank == 0:\n    out = out + x" + _SUM, parameters="x"),
            absorber=False,
        ),
        case(
            "one-part-for-each-rank",
            method("out = self.experts(x)\nout = out + x / self.tp_size" + _SUM, parameters="x"),
            absorber=False,
        ),
        case(
            "a-batch-without-tokens",
            method("out = x\nif x.shape[0] > 0:\n    out = self.experts(x)" + _SUM, parameters="x"),
            absorber=False,
        ),
        case(
            "never-together",
            method(
                "out = self.experts(x)\nif self.tp_size == 1:\n    out = out + x" + _SUM,
                parameters="x",
            ),
            absorber=False,
        ),
        _layer(
            "added-behind-by-the-layer", "out = self.mlp(self.norm(x))" + _SUM.replace("return out", "return out + x")
        ),
        _layer("normed-behind", "x = self.mlp(x)\nout = self.norm(x)\nout = out + x" + _SUM),
        _layer("partial-terms-of-the-layer", "x = self.norm(x)\nout = self.mlp(x) + self.other(x)" + _SUM),
    )
    INVALID = (
        _layer("by-the-layer", "out = self.mlp(self.norm(x))\nout += x" + _MARKED),
        _layer(
            "of-three-by-the-layer",
            "residual = x\nx = self.norm(x)\nattn, y = self.other(x), self.mlp(x)\nout = residual + attn + y" + _MARKED,
        ),
        case("input", method("out = self.experts(x)\nout = out + x" + _MARKED, parameters="x"), absorber=False),
        case("in-place", method("out = self.experts(x)\nout += x" + _MARKED, parameters="x"), absorber=False),
        case(
            "kept-under-another-name",
            method("residual = x\nout = self.experts(x)\nout = residual + out" + _MARKED, parameters="x"),
            absorber=False,
        ),
        case(
            "inside-the-reduction",
            method(
                "out = self.experts(x)\nreturn tensor_model_parallel_all_reduce(out + x)  # <- MOE311", parameters="x"
            ),
            absorber=False,
        ),
        case(
            "with-the-helper",
            method(
                """
                out = self.experts(x)
                out = out + x
                if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
                    out = tensor_model_parallel_all_reduce(out)  # <- MOE311
                return out
                """,
                parameters="x",
            ),
            absorber=False,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for site in context.sites:
            facts = context.index.facts(site.path)
            if site.post_experts and facts is not None and site.raw.function in facts.functions:
                for term, line in _joining(site, facts, context):
                    yield self.finding(
                        site,
                        f"`{term}` is what went in, whole on every rank, and is summed with what the experts "
                        f"computed: it is counted once for every rank{launch(context, TRUE)}",
                        context,
                        remedy=f"add `{term}` behind the reduction",
                        related=(Related(site.path, line, f"`{term}` joins here"),),
                    )
                    break


def _joining(site: Site, facts: FileFacts, context: Context) -> Iterator[tuple[str, int]]:
    """(parameter, line) of the function's own input among the terms of what a site sums."""
    origins = next((o for span, o in facts.paths(site.raw.function).summed if span == site.raw.span), frozenset())
    joining = {o.name for o in origins if isinstance(o, Param)}
    conduct = context.callers.conduct(Ref(site.path, site.raw.function)) if joining else None
    if conduct is None:
        return
    guard = conj(part.formula for part in site.raw.guard)
    finds = partial(facts.finds, site.raw.function)
    given = joining & {*_given_to_experts(origins), *_normed(conduct, finds, context.index.profile)}
    names = {name for n in given for name in (n, *_other_names(n, finds))}
    for name in _operands(site.raw.operand):
        if name in names:
            yield name, site.raw.span.line
    for addition in conduct.additions:
        operand = site.raw.operand
        into = addition.target == operand or facts.lines[addition.span.line - 1].lstrip().startswith(f"{operand} = ")
        ours = into and addition.span < site.raw.span and addition.term in names
        if ours and not counts_once(addition, context.index.profile) and _meet(addition, guard, context):
            yield addition.term, addition.span.line


def _meet(addition: Addition, guard: Formula, context: Context) -> bool:
    """Whether a term is added, and the sum runs, in one state."""
    return context.callers.possible(conj((addition.condition, guard)))


def _given_to_experts(origins: Origins) -> Iterator[str]:
    """The parameters among what the calls that a value comes from were given."""
    for origin in origins:
        if isinstance(origin, CallResult):
            yield from (o.name for o in origin.inputs if isinstance(o, Param))
            yield from _given_to_experts(origin.inputs)


def _normed(conduct: Conduct, finds: Callable[[str], list[str]], profile: Profile) -> Iterator[str]:
    """The parameters that go into a layer's norm as they came: what is normed is whole."""
    for call in conduct.calls:
        name = call.arguments[0].text if call.arguments else ""
        if name in conduct.params and call.callee.startswith("self.") and profile.is_barrier(call.callee[5:]):
            norm = rf"{re.escape(call.callee)}\({name}"
            # which comes first: the call, or a line in front of it that gives the parameter another value
            first = finds(rf"^(?![^\n]*{norm})[^\S\n]*{name}\b[^=(\n]*=(?!=)|{norm}")[:1]
            if all(text.startswith(call.callee) for text in first):
                yield name


def _other_names(parameter: str, finds: Callable[[str], list[str]]) -> list[str]:
    """The locals that are nothing but a parameter under another name."""
    found = finds(rf"^\s*(\w+) = {re.escape(parameter)}\s*$")
    return [name for name in found if len(finds(rf"\b{re.escape(name)}\s*(?:\+|-|\*|/)?=(?!=)")) == 1]


def _operands(text: str) -> list[str]:
    """The names that are added up in an expression."""
    try:
        parts = list(nodes(ast.parse(text, mode="eval").body))
    except SyntaxError:
        return []
    sums = [n for n in parts if isinstance(n, ast.BinOp)]
    names = [n for n in parts if isinstance(n, ast.Name)]
    return [n.id for n in names] if sums and all(isinstance(n.op, ast.Add) for n in sums) else []
