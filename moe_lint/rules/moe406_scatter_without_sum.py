from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import cleandoc
from textwrap import indent

from moe_lint.facts import NOTHING, CallFact, CallResult, Origins
from moe_lint.formula import FALSE, TooManyAtoms, atom_set, conj, implies, negate, satisfiable
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.model import Confidence, Finding, Related, Route, Severity
from moe_lint.policy import Reason
from moe_lint.rules._cases import BARE, ROUTED, Piece, experts, when_read
from moe_lint.rules._central import STEP, communicator, engine
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site

_PROMISE = "return self.allow_reduce_scatter and self.step is Steps.scatter and batch.padding.is_max_len()"
_BASE = communicator(_PROMISE, STEP)
_OWN = '''\
"""A communicator of one model, begun as a copy of the steps of another."""

from engine.distributed import dp_reduce_scatter_tensor, dp_scatter, get_tp_group
from engine.layers.moe.utils import get_moe_a2a_backend, should_use_dp_reduce_scatterv


class OwnSteps:
    @staticmethod
    def scatter(x, batch, allow_reduce_scatter=False):
        {first}
            {sum}(x)
        else:
            dp_scatter(x){mark}
        return x
'''
_MARK = "  # <- MOE406"


def _step(name: str, first: str, total: str = "dp_reduce_scatter_tensor", mark: str = "") -> Case:
    return engine(name, layers=_BASE, layers__own=_OWN.format(first=first, sum=total, mark=mark))


_LAYER = '''\
"""A layer that gathers and scatters for itself."""

from engine.distributed import dp_gather, dp_scatter, get_tp_group, tensor_model_parallel_all_reduce
from engine.layers.moe.utils import (
    get_moe_a2a_backend,
    should_skip_post_experts_all_reduce,
    should_use_dp_reduce_scatterv,
)


class Block:
{block}

class Layer:
    def __init__(self, config):
        self.mlp = Block(config)

    def forward(self, x, batch):
        gathers = get_moe_a2a_backend().is_none() and get_attention_dp_size() > 1
        if gathers:
            dp_gather(x, batch)
        whole = self.mlp(x)
{scatter}
        return whole
'''
_ALWAYS = experts(BARE)


_BLOCK = experts(ROUTED)


@when_read
def _layer(name: str, scatter: str, block: Piece = _BLOCK) -> Case:
    body = indent(cleandoc(scatter), " " * 8)
    return engine(name, layers=_BASE, models__own=_LAYER.format(block=indent(str(block), "    "), scatter=body))


class ScatterWithoutSum(Rule):
    """A block leaves its sum to a reduce-scatter, and on this path what it returned is scattered without a sum.

    Some of the helper's reasons need no flag: under them a block never sums, because every step that gives the ranks
    their tokens back sums on the way (`reduce_scatterv`). A step or a layer of its own that scatters plainly in such a
    state breaks that silent contract. Each token leaves with the part of the rank that owned its experts, and the text
    turns to noise.

    Instead of

        if allow_reduce_scatter and batch.padding.is_max_len():
            dp_reduce_scatter_tensor(local, whole)
        else:
            dp_scatter(local, whole, batch)

    sum wherever the helper relies on it:

        if should_use_dp_reduce_scatterv():
            get_tp_group().reduce_scatterv(whole, output=local)
        elif allow_reduce_scatter and batch.padding.is_max_len():
            dp_reduce_scatter_tensor(local, whole)
        else:
            dp_scatter(local, whole, batch)

    Looked at are reasons for which some step of the tree sums, functions that scatter one tensor with a sum on one path
    and without on another, and layers that scatter what a block returned that asks the helper. Reported at the plain
    scatter. There is no fix.
    """

    code = "MOE406"
    name = "scatter-without-sum"
    confidence = Confidence.MEDIUM
    VALID = (
        _step("asks-what-the-helper-asks", "if should_use_dp_reduce_scatterv():", "get_tp_group().reduce_scatterv"),
        _step(
            "sums-in-more-states",
            "if should_use_dp_reduce_scatterv() or allow_reduce_scatter and batch.padding.is_max_len():",
        ),
        _step("sums-whenever-there-is-no-backend", "if get_moe_a2a_backend().is_none():"),
        _layer(
            "layer-that-sums-as-the-helper-relies-on",
            """
            if gathers and should_use_dp_reduce_scatterv():
                get_tp_group().reduce_scatterv(whole)
            elif gathers:
                dp_scatter(whole)
            """,
        ),
        _layer("block-that-always-sums", "\nif gathers:\n    dp_scatter(whole)", _ALWAYS),
        _layer("other-tensor", "\nif gathers:\n    dp_scatter(residual)"),
        _step(
            "beside-the-sum-of-another-tensor",
            "if should_use_dp_reduce_scatterv():",
            "batch.residual = dp_scatter(batch.residual, like=x)\n            get_tp_group().reduce_scatterv",
        ),
        _layer("excluded-by-a-backend", "\nif get_moe_a2a_backend().is_mori():\n    dp_scatter(whole)"),
    )
    INVALID = (
        _step(
            "step-without-the-reason",
            "if allow_reduce_scatter and batch.padding.is_max_len():",
            mark=_MARK,
        ),
        _step("step-that-sums-for-a-backend-only", "if get_moe_a2a_backend().is_mori():", mark=_MARK),
        _step(
            "reason-and-something-else",
            "if should_use_dp_reduce_scatterv() and batch.padding.is_max_len():",
            "get_tp_group().reduce_scatterv",
            mark=_MARK,
        ),
        _layer("layer-with-a-plain-scatter", f"\nif gathers:\n    dp_scatter(whole){_MARK}"),
        _layer(
            "layer-that-sums-on-one-path",
            f"""
            if gathers and batch.padded:
                dp_reduce_scatter_tensor(whole)
            elif gathers:
                dp_scatter(whole){_MARK}
            """,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        kept = list(_kept(context))
        for function, call in _plain(context) if kept else ():
            for reason, where in kept:
                shown = _lost(function, call, reason, context)
                if shown is not None:
                    yield self._report(function, call, reason, where, shown, context)
                    break

    def _report(
        self,
        function: Ref,
        call: CallFact,
        reason: Reason,
        where: tuple[Ref, int],
        shown: Configuration,
        context: Context,
    ) -> Finding:
        owner, _, name = function.name.rpartition(".")
        helper = context.policy.helper
        asked = helper.name if helper is not None else "the helper"
        step, line = where
        return Finding(
            self.code,
            self.name,
            function.path,
            call.span,
            Severity.ERROR,
            self.confidence,
            f"`{call.callee.rsplit('.', 1)[-1]}` sums nothing, "
            f"and for `{reason.text}` `{asked}` has the block leave its sum out",
            name,
            owner or None,
            witness=f"with {shown} nobody sums: each rank keeps its own partial sum",
            related=(Related(step.path, line, f"`{step.name}` sums here in that state"),),
            remedy=f"sum and scatter in one where `{reason.text}` holds",
        )


def _kept(context: Context) -> Iterator[tuple[Reason, tuple[Ref, int]]]:
    """The helper's reasons that need no flag, and for which some step of the tree sums: with the place of that sum."""
    policy, index = context.policy, context.index
    if policy.helper is None or policy.helper.proposed:
        return
    flags = {flag.name for flag in policy.profile.flags}
    reasons = [r for r in policy.reasons("TP") if not atom_set(policy.opened(r.formula)) & flags]
    sums = [
        (Ref(path, name), scatter)
        for word in policy.profile.scatters
        for path in index.holding(f"{word}(")
        for facts in (index.facts(path),)
        if facts is not None
        for name in facts.functions_at(index.lines_of(path, f"{word}("))
        if name.rsplit(".", 1)[-1] not in policy.profile.combines
        for scatter in facts.function(name).scatters
    ]
    for reason in reasons:
        for where, scatter in sums:
            if scatter.condition != FALSE and not satisfiable(conj((scatter.condition, negate(reason.formula)))):
                yield reason, (where, scatter.span.line)
                break


def _plain(context: Context) -> Iterator[tuple[Ref, CallFact]]:
    """The calls that scatter a tensor and sum nothing."""
    index = context.index
    for word in context.policy.profile.plain_scatters:
        for path in index.holding(f"{word}("):
            facts = index.facts(path)
            for name in facts.functions_at(index.lines_of(path, f"{word}(")) if facts is not None else ():
                if facts is not None:
                    calls = facts.function(name).calls
                    yield from ((Ref(path, name), c) for c in calls if c.callee.rsplit(".", 1)[-1] == word)


def _lost(function: Ref, call: CallFact, reason: Reason, context: Context) -> Configuration | None:
    """A launch configuration in which a block leaves its sum for a reason, and a call scatters what it returned."""
    facts = context.index.facts(function.path)
    if facts is None:
        return None
    inside = facts.function(function.name)
    condition = facts.call_condition(function.name, call.span)
    # where the sum runs as well, it is another tensor that is scattered plainly
    summing = {scatter.span for scatter in inside.scatters if not implies(condition, scatter.condition)}
    moved = _given(call)
    summed_elsewhere = any(moved & _given(other) for other in inside.calls if other.span in summing)
    blocks = _blocks(moved, function, context)
    leaves = any(_leaves(sums, reason, context) for sums in blocks)
    if not leaves and (blocks or not summed_elsewhere):
        return None
    return context.policy.configuration(conj((condition, reason.formula)), "TP")


def _given(call: CallFact) -> Origins:
    return NOTHING.union(*(argument.origins for argument in call.arguments))


def _blocks(origins: Origins, function: Ref, context: Context) -> list[list[Site]]:
    """Of each class that one of these values may come from, the sums of experts' output in each of its methods."""
    index = context.index
    owner = function.name.rpartition(".")[0] or None
    found: dict[Ref, list[Site]] = {}
    for origin in sorted(origins, key=repr):
        targets = index.targets(function.path, owner, origin.callee) if isinstance(origin, CallResult) else ()
        for target in targets:
            family = index.mro(Ref(target.function.path, target.function.name.rpartition(".")[0]))
            for site in context.sites:
                if site.post_experts and Ref(site.path, site.raw.class_name or "") in family:
                    found.setdefault(Ref(site.path, site.raw.function), []).append(site)
    return list(found.values())


def _leaves(sums: Iterable[Site], reason: Reason, context: Context) -> bool:
    """Whether a method makes none of its sums for a reason: it asks the helper, by itself or through a wrapper."""
    policy = context.policy
    try:
        return all(
            site.route is Route.WRAPPER
            or (
                site.route is Route.HELPER
                and not satisfiable(policy.opened(conj((policy.with_helper(site.guard), reason.formula))))
            )
            for site in sums
        )
    except TooManyAtoms:
        return False
