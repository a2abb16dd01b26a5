from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial

from moe_lint.formula import FALSE, TRUE, Atom, Formula, assign, atom_set, conj, negate
from moe_lint.index import ProjectIndex, Ref
from moe_lint.launch import Configuration
from moe_lint.model import Confidence, Finding, Related
from moe_lint.profile import longest_part
from moe_lint.rules._cases import BARE, Piece, block, layer_case, method
from moe_lint.rules._handed_over import HandedOver, SumOver, handed_over, is_run, sums_behind, sums_of
from moe_lint.rules._layers import calls_a_reducer, launch
from moe_lint.rules._parts import Part, at_part, parts, quoted
from moe_lint.rules.base import Case, Context, Rule

#: `shared_experts=self.shared_experts,`, or the end of `None if … else self.shared_experts`.
_PASSED = re.compile(r"(?:=\s*|\belse\s+)self\.(\w+)\s*(?:[,)]|$)")

#: Experts that run the shared experts, too, and a dense layer that sums unless it is told not to.
_EXPERTS = """
class FusedMoE:
    def __init__(self, config, shared_experts=None, split_tokens=False, reduce_results=True):
        self.shared_experts = shared_experts
        self.split_tokens = split_tokens
        self.reduce_results = reduce_results

    def forward(self, x):
        x = self.run(x) + self.shared_experts(x)
        if self.tp_size > 1 and self.reduce_results and not self.split_tokens:
            x = tensor_model_parallel_all_reduce(x)
        return x
"""
_RUNNER = """
class Runner:
    def __init__(self, config, shared=None):
        self.shared = shared

    def forward(self, x):
        x = self.run(x) + self.shared(x)
        if self.tp_size > 1:
            x = tensor_model_parallel_all_reduce(x)
        return x


class FusedMoE:
    def __init__(self, config, shared_experts=None):
        self.runner = Runner(config, shared=shared_experts)

    def forward(self, x):
        return self.runner(x)
"""
_MLP = """
class RowParallelLinear:
    def __init__(self, config, reduce_results=True, tp_size=None):
        self.reduce_results = reduce_results


class MLP:
    def __init__(self, config, reduce_results=True, tp_size=None):
        self.down_proj = RowParallelLinear(config, reduce_results=reduce_results)

    def forward(self, x):
        x, _ = self.down_proj(x)
        return x
"""
_SCATTERING = _MLP.replace("return x", "return reduce_scatter(x)")
_RUN = method("x = self.experts(x)", parameters="x")
_MARK = "  # <- MOE312"
_WHOLE_WHERE_SPLIT = "reduce_results=False, **(dict(tp_size=1) if self.split else {})"


def _handing(
    name: str,
    shared: str,
    told: str = "",
    *,
    experts: str = _EXPERTS,
    mlp: str = _MLP,
    run: Piece = _RUN,
    mark: str = "",
) -> Case:
    """A block that builds shared experts with some arguments and hands them to its experts beside others."""
    build = f"self.shared_experts = MLP(config{shared and ', '}{shared}){mark}"
    hand = f"self.experts = FusedMoE(config, {told or 'shared_experts=self.shared_experts'})"
    return layer_case(name, experts, mlp, block(run, init=f"{build}\n{hand}"), layer="x = self.mlp(x)")


class HandedOverMisfit(Rule):
    """Shared experts are handed to the experts, and their output is summed twice there, or by nobody.

    An experts' layer that runs the shared experts, too, adds their output to its own and sums both at once. So what it
    is handed must leave its sum out (`reduce_results=False`): a layer that sums by default, or one that is whole on
    every rank, counts once for every rank. Where the layer sums nothing, since each rank has tokens of its own
    (sequence parallelism), it is the other way round: shared experts that are split over the ranks leave each token
    with one rank's part.

    Instead of

        self.shared_experts = MLP(config)  # reduces by default
        self.experts = FusedMoE(
            config, shared_experts=self.shared_experts, is_sequence_parallel=self.is_sequence_parallel
        )

    build them as the experts' layer expects them:

        self.shared_experts = MLP(config, reduce_results=False, disable_tp=self.is_sequence_parallel)

    When that layer sums is read from the tree: from the class that takes the shared experts, from the runner that it
    hands them on to, and from the block behind it. Not reported: shared experts that reduce or scatter in a way of
    their own, an experts' layer that is not known, and a state that cannot be told to be one of those in which it sums.
    Reported where the shared experts are built. There is no fix.
    """

    code = "MOE312"
    name = "handed-over-misfit"
    confidence = Confidence.MEDIUM
    VALID = (
        _handing("left-to-the-experts", "reduce_results=False"),
        _handing("left-to-a-runner", "reduce_results=False", experts=_RUNNER),
        _handing(
            "summing-for-themselves-in-a-runner-that-does-not", "", experts=_RUNNER.replace("> 1", "> 1 and False")
        ),
        _handing(
            "summing-for-themselves-where-the-experts-do-not",
            "",
            "shared_experts=self.shared_experts, reduce_results=False",
        ),
        _handing(
            "whole-where-the-tokens-are-split",
            _WHOLE_WHERE_SPLIT,
            "shared_experts=self.shared_experts, split_tokens=self.split",
        ),
        _handing(
            "handed-over-where-they-are-not-whole",
            _WHOLE_WHERE_SPLIT,
            "shared_experts=None if self.split else self.shared_experts",
        ),
        _handing(
            "scattered-in-their-own-way",
            "reduce_results=False",
            "shared_experts=self.shared_experts, split_tokens=config.split",
            mlp=_SCATTERING,
        ),
        _handing(
            "whole-under-a-name-that-the-experts-are-not-told",
            _WHOLE_WHERE_SPLIT,
            "shared_experts=self.shared_experts, split_tokens=config.split",
        ),
        _handing("handed-to-experts-that-are-not-known", "", experts="from elsewhere import FusedMoE"),
        _handing(
            "summed-by-the-block-behind-the-experts",
            "reduce_results=False",
            "shared_experts=self.shared_experts, reduce_results=False",
            run=method("x = self.experts(x)\n" + BARE.strip(), parameters="x"),
        ),
    )
    INVALID = (
        _handing("summing-by-default", "", mark=_MARK),
        _handing("told-to-sum", "reduce_results=True", mark=_MARK),
        _handing("summed-again-by-a-runner", "", experts=_RUNNER, mark=_MARK),
        _handing("whole-on-every-rank", "reduce_results=False, tp_size=1", mark=_MARK),
        _handing(
            "whole-where-the-tokens-are-not-split",
            "reduce_results=False, **(dict(tp_size=1) if not self.split else {})",
            "shared_experts=self.shared_experts, split_tokens=self.split",
            mark=_MARK,
        ),
        _handing("whole-where-the-experts-are-told-nothing", _WHOLE_WHERE_SPLIT, mark=_MARK),
        _handing(
            "whole-only-where-they-are-not-handed-over",
            _WHOLE_WHERE_SPLIT,
            "shared_experts=None if self.split else self.shared_experts, split_tokens=config.split_tokens",
            mark=_MARK,
        ),
        _handing(
            "split-where-the-tokens-are-split",
            "reduce_results=False",
            "shared_experts=self.shared_experts, split_tokens=config.split",
            mark=_MARK,
        ),
        _handing(
            "handed-over-in-one-arm", "", "shared_experts=None if config.apart else self.shared_experts", mark=_MARK
        ),
        _handing(
            "summed-again-by-the-block",
            "",
            "shared_experts=self.shared_experts, reduce_results=False",
            run=method("x = self.experts(x)\n" + BARE.strip(), parameters="x"),
            mark=_MARK,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for part in _shared_parts(context):
            for handed in handed_over(part, context.callers):
                found = _twice(handed, context) or _by_nobody(handed, context)
                if found is not None:
                    message, related, remedy = found
                    taken = f"`self.{part.attribute}` is handed over here"
                    yield at_part(
                        self, part, message, remedy, (Related(part.path, handed.call.span.line, taken), related)
                    )
                    break


def _shared_parts(context: Context) -> Iterator[Part]:
    """The shared experts of every class that passes them to somebody."""
    index = context.index
    for path in sorted(index.texts):
        lines = index.lines_that(path, "hand shared experts over", partial(_handing_lines, index, path))
        facts = index.facts(path) if lines else None
        for name in dict.fromkeys(facts.class_at(line) for line in lines) if facts is not None else ():
            if name is not None:
                yield from parts(context.callers, Ref(path, name), index.profile.is_shared)


def _handing_lines(index: ProjectIndex, path: str) -> Iterator[int]:
    """The lines on which shared experts are a whole argument, or the end of one."""
    for word in {longest_part(pattern) for pattern in index.profile.shared}:
        for number in dict.fromkeys(index.lines_of(path, word)):
            if any(index.profile.is_shared(name) for name in _PASSED.findall(index.line(path, number))):
                yield number


def _twice(handed: HandedOver, context: Context) -> tuple[str, Related, str] | None:
    """Where somebody sums what is whole already."""
    part, profile = handed.part, context.index.profile
    whole = TRUE if part.sums is True else _whole_there(handed, context)
    if whole == FALSE or is_run(handed, context):
        return None
    shown = [_shown(handed, taker, whole, context) for taker in (handed.takers, *((one,) for one in handed.others))]
    for sums in shown:
        if not sums:
            return None  # one that may take them sums nothing
    over, configuration = shown[0][0]
    sums_itself = part.sums is True
    why = quoted(part.by) if sums_itself else "whole on every rank"
    told = f" (for example {configuration})" if configuration is not None else ""
    keyword = profile.reducing[0]
    return (
        f"`self.{part.attribute}` is built {'with ' if sums_itself else ''}{why}"
        f"{' and sums' if sums_itself else ''}, and `{over.by.name}`, which runs it, sums what it returns again: "
        f"its term counts once for every rank{told}",
        Related(over.site.path, over.site.raw.span.line, f"`{over.site.raw.collective}` runs here"),
        f"build `self.{part.attribute}` with `{keyword}=False`"
        if sums_itself
        else f"do not hand `self.{part.attribute}` over where it is whole: add what it returns behind the sum",
    )


def _shown(
    handed: HandedOver, takers: Iterable[Ref], whole: Formula, context: Context
) -> list[tuple[SumOver, Configuration]]:
    """The sums that one of some classes, or the block, makes of what is whole, each with a configuration of that."""
    found: list[tuple[SumOver, Configuration]] = []
    for over in (*(one for taker in takers for one in sums_of(handed, taker, context)), *sums_behind(handed, context)):
        both = conj((whole, over.runs))
        if over.compares(whole) and context.callers.possible(conj((both, handed.when)), unknown=False):
            site = over.site
            configuration = context.policy.configuration(
                context.policy.with_helper(both), site.axis, site.raw.collective
            )
            if configuration is not None:
                found.append((over, configuration))
    return sorted(found, key=lambda one: len(str(one[1])))


def _by_nobody(handed: HandedOver, context: Context) -> tuple[str, Related, str] | None:
    """Where nobody sums what is split over the ranks, since the experts were told so."""
    part, callers = handed.part, context.callers
    if part.sums is not False or not _is_split(part, context):
        return None
    takers = (*handed.takers, *handed.others)
    every = (*(one for taker in takers for one in sums_of(handed, taker, context)), *sums_behind(handed, context))
    sums = [over for over in every if callers.possible(over.runs, unknown=False)]
    whole = _whole_there(handed, context)
    if not all(over.compares(whole) for over in sums):
        return None
    for keyword, told in handed.told.items() if sums else ():
        split = conj((told, negate(whole), handed.when))
        passed = next((p.text for p in handed.call.arguments if p.keyword == keyword), "")
        if told in (TRUE, FALSE) or not passed or keyword in context.index.profile.reducing:
            continue
        if not callers.possible(split, unknown=False):
            continue
        if any(callers.possible(conj((told, over.runs))) for over in sums):
            continue
        return (
            f"`self.{part.attribute}` is split over the ranks also where `{keyword}={passed}` tells "
            f"`self.{handed.call.stored}` that nobody sums its output: each rank keeps its own part of the term"
            f"{launch(context, conj((told, negate(whole))))}",
            Related(sums[0].site.path, sums[0].site.raw.span.line, "otherwise it is summed here"),
            f"build `self.{part.attribute}` whole on every rank where `{passed}` holds",
        )
    return None


def _whole_there(handed: HandedOver, context: Context) -> Formula:
    """When shared experts are whole on every rank, among the states in which they are handed over."""
    whole, possible = handed.part.whole, context.callers.possible
    for name in sorted(atom_set(whole)):
        if not possible(conj((handed.when, Atom(name)))):
            whole = assign(whole, name, FALSE)
    return whole


def _is_split(part: Part, context: Context) -> bool:
    """Whether it is known when the layer is split over the ranks, and it does not put its parts together itself."""
    built = [b for b in context.callers.built(part.owner).get(part.attribute, ()) if b.call.span == part.call.span]
    return part.certain and not any(calls_a_reducer(one.owner, context) for one in built)
