from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import cleandoc
from itertools import pairwise
from textwrap import indent

from moe_lint.facts import GroupChoice
from moe_lint.formula import FALSE, TRUE, Atom, Formula, TooManyAtoms, assign, atom_set, conj, exists, negate
from moe_lint.index import Ref
from moe_lint.launch import Configuration
from moe_lint.local_predicates import answered
from moe_lint.model import Confidence, Finding, Related, Route
from moe_lint.profile import Flag
from moe_lint.rules._cases import when_read
from moe_lint.rules._central import at_definition, defined, engine
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site

#: How many calls down from the function that sums the choice of its group is looked for.
_DEPTH = 6
_LOST = "sums over one of them: each rank goes on with a partial sum"

_COMMUNICATOR = """\
class LayerCommunicator:
    def should_fuse_mlp_allreduce_with_next_layer(self, batch):{mark}
        return {promise}
"""
_OWN = """\
from engine.layers.communicator import LayerCommunicator


class OwnCommunicator(LayerCommunicator):
    def should_fuse_mlp_allreduce_with_next_layer(self, batch):
        return self.service.ready or super().should_fuse_mlp_allreduce_with_next_layer(batch)
"""
_PROMISE = "settings.fusion and batch.size > 0 and not self.is_last_layer"
_NORM = """\
from engine.distributed import get_parallel, ranks_of


class RMSNorm:
    def forward_with_allreduce_fusion(self, x, residual, of_attention=True):
        return self.forward(fused(x, of_attention), residual)


def fused(x, of_attention):
    workspace = prepare(of_attention)
    return workspace.sum(x)


def prepare(of_attention):
{body}
"""
_EITHER = """
if of_attention:
    size = get_parallel().attn_tp_size
elif get_parallel().moe_ep_size > 1:
    size = get_parallel().moe_ep_size
else:
    size = get_parallel().moe_tp_size
return ranks_of(size)
"""
_MARK = "  # <- MOE405"


_CALLS = """
    def prepare_attn(self, x, residual):
        return self.input_layernorm.forward_with_allreduce_fusion(x, residual{})

    def prepare_mlp(self, x, residual):
        return self.post_attention_layernorm.forward_with_allreduce_fusion(x, residual, of_attention=True)
"""


@when_read
def _fused(name: str, body: str, promise: str = _PROMISE, mark: str = "", calls: str = "") -> Case:
    return engine(
        name,
        layers=_COMMUNICATOR.format(promise=promise, mark=mark) + calls,
        layers__norm=_NORM.format(body=indent(cleandoc(body), "    ")),
    )


_MODEL = """\
from engine.distributed import (
    get_moe_expert_parallel_world_size,
    get_moe_tensor_parallel_world_size,
    moe_expert_parallel_all_reduce,
    moe_tensor_model_parallel_all_reduce,
    tensor_model_parallel_all_reduce,
)


class Model:
    def forward(self, x, residual, batch):
        for layer in self.layers:
            x, residual = layer(x, residual, batch)
        if getattr(x, "_sglang_needs_allreduce_fusion", False):
{body}
        return x
"""


@when_read
def _flushed(name: str, body: str) -> Case:
    """A model that settles what its last layer may owe before it hands the tensor on."""
    return engine(name, models__flushing=_MODEL.format(body=indent(cleandoc(body), " " * 12)))


class OneSumOfTwo(Rule):
    """Where a block leaves out its sums over two groups, only one of them is made up for.

    Experts can be spread over the ranks of an EP group, and each be split over those of a MoE-TP group. With several
    ranks in both (`--tp 8 --ep 2`) a block owes two sums, and leaves out both when the layer's communicator promises to
    sum. Code that picks a group, "EP if it has several ranks, else MoE-TP", then runs one of the two: each rank goes on
    with a partial sum. With either group alone nothing shows.

    Instead of

        if get_moe_expert_parallel_world_size() > 1:
            group = get_moe_ep_group()
        else:
            group = get_moe_tp_group()

    sum over all ranks that the two span, or do not promise a sum in that layout:

        def should_fuse_mlp_allreduce_with_next_layer(self, batch):
            if get_parallel().moe_ep_size > 1 and get_parallel().moe_tp_size > 1:
                return False

    Reported at the promise; where a model settles a marked tensor by two sums of which one keeps the other from running
    (`elif`), at the second. There is no fix: both functions are central, and which is to change is your decision.
    """

    code = "MOE405"
    name = "one-sum-of-two"
    confidence = Confidence.MEDIUM
    VALID = (
        _fused(
            "over-all-ranks",
            """
            size = get_parallel().attn_tp_size if of_attention else get_parallel().tp_size
            return ranks_of(size)
            """,
        ),
        _fused(
            "not-promised-with-two-groups",
            _EITHER,
            "settings.fusion and not (get_parallel().moe_ep_size > 1 and get_parallel().moe_tp_size > 1)",
        ),
        _fused(
            "not-promised-with-two-groups-by-a-method",
            _EITHER,
            "settings.fusion and not self.spans_two(get_parallel())",
            calls="""
    @staticmethod
    def spans_two(parallel):
        if parallel.moe_ep_size <= 1:
            return False
        return parallel.moe_tp_size > 1
""",
        ),
        _fused(
            "both-merged-before-the-choice",
            """
            parallel = get_parallel()
            if parallel.moe_ep_size > 1 and parallel.moe_tp_size > 1:
                return ranks_of(parallel.tp_size)
            return ranks_of(parallel.moe_ep_size if parallel.moe_ep_size > 1 else parallel.moe_tp_size)
            """,
        ),
        _fused(
            "only-asks-whether-there-is-anything-to-sum",
            """
            if get_parallel().moe_ep_size > 1:
                size = get_parallel().moe_ep_size
            else:
                size = get_parallel().moe_tp_size
            return ranks_of(get_parallel().tp_size) if size > 1 else None
            """,
        ),
        _fused("always-over-the-ranks-of-attention", _EITHER, calls=_CALLS.format(", of_attention=True")),
        _fused("over-the-ranks-of-attention-by-position", _EITHER, calls=_CALLS.format(", True")),
        _fused("over-the-ranks-of-attention-by-default", _EITHER, calls=_CALLS.format("")),
        engine(
            "adds-to-another-promise",
            layers=_COMMUNICATOR.format(promise="False", mark=""),
            layers__own=_OWN,
            layers__norm=_NORM.format(body=indent(cleandoc(_EITHER), "    ")),
        ),
        _flushed(
            "both-settled",
            """
            if get_moe_expert_parallel_world_size() > 1:
                x = moe_expert_parallel_all_reduce(x)
            if get_moe_tensor_parallel_world_size() > 1:
                x = moe_tensor_model_parallel_all_reduce(x)
            """,
        ),
        _flushed(
            "settled-over-all-ranks",
            """
            if get_moe_expert_parallel_world_size() > 1:
                x = tensor_model_parallel_all_reduce(x)
            elif get_moe_tensor_parallel_world_size() > 1:
                x = moe_tensor_model_parallel_all_reduce(x)
            """,
        ),
    )
    INVALID = (
        _fused("either-group", _EITHER, mark=_MARK),
        _fused("either-group-by-position", _EITHER, mark=_MARK, calls=_CALLS.format(", False")),
        _fused(
            "either-group-where-a-caller-says-so", _EITHER, mark=_MARK, calls=_CALLS.format(", of_attention=batch.x")
        ),
        _fused("either-group-for-what-blocks-left", _EITHER, mark=_MARK, calls=_CALLS.format(", of_attention=False")),
        _fused(
            "either-group-returned",
            """
            if get_parallel().moe_ep_size > 1:
                return get_parallel().moe_ep_size
            return get_parallel().moe_tp_size
            """,
            mark=_MARK,
        ),
        _fused(
            "the-other-way-round",
            """
            parallel = get_parallel()
            return ranks_of(parallel.moe_tp_size if parallel.moe_tp_size > 1 else parallel.moe_ep_size)
            """,
            mark=_MARK,
        ),
        _fused(
            "promise-excludes-another-layout",
            _EITHER,
            "settings.fusion and not (get_parallel().moe_ep_size > 1 and get_parallel().attn_dp_size > 1)",
            mark=_MARK,
        ),
        _flushed(
            "second-sum-in-an-elif",
            """
            if get_moe_expert_parallel_world_size() > 1:
                x = moe_expert_parallel_all_reduce(x)
            elif get_moe_tensor_parallel_world_size() > 1:
                x = moe_tensor_model_parallel_all_reduce(x)  # <- MOE405
            """,
        ),
        _flushed(
            "second-sum-in-an-else",
            """
            if get_moe_tensor_parallel_world_size() > 1:
                x = moe_tensor_model_parallel_all_reduce(x)
            else:
                x = moe_expert_parallel_all_reduce(x)  # <- MOE405
            """,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for flag in context.policy.profile.flags:
            choices = list(_choices(flag, context)) if flag.predicate and _defers(flag, context) else []
            for promise in defined(flag.predicate, context) if choices else ():
                yield from self._broken(flag, promise, choices, context)
        for first, second, shown in _settled_in_part(context):
            yield self.finding(
                second,
                "a marked tensor owes a sum over two groups, and this one runs only where the first does not",
                context,
                witness=f"with {shown} both groups have several ranks, and the model {_LOST}",
                remedy="settle both: let neither condition exclude the other, or sum over all ranks at once",
                related=(Related(first.path, first.raw.span.line, "the sum over the other group"),),
            )

    def _broken(
        self, flag: Flag, promise: Ref, choices: Iterable[tuple[Ref, GroupChoice]], context: Context
    ) -> Iterator[Finding]:
        said = context.index.condition(promise)
        if said is None:
            return
        promised = answered(said, promise.name.rpartition(".")[0] or None, promise.path, context.index)
        if any(name.startswith(f"super().{flag.predicate}(") for name in atom_set(promised)):
            return  # what it adds to the base's promise may be kept in another way
        for function, choice in choices:
            condition = _told(choice.condition, flag, context)
            shown = _shown((Atom(flag.name), promised, condition), _groups(choice, context), context)
            if shown is None:
                continue
            yield at_definition(
                self,
                promise,
                f"`{flag.predicate}` promises a sum where experts are spread over two groups, "
                f"and `{function.name}` picks one of them",
                context,
                witness=f"with {shown} blocks leave out their sums over both groups, and `{function.name}` {_LOST}",
                remedy="answer no where both groups have several ranks, or sum over the ranks of both at once",
                related=(
                    Related(
                        function.path,
                        choice.span.line,
                        f"the ranks of `{choice.first}`, or those of `{choice.second}`, are picked here",
                    ),
                ),
            )
            return


def _defers(flag: Flag, context: Context) -> bool:
    """Whether the helper leaves out the sums over both groups for a flag."""
    policy = context.policy
    axes = (policy.reasons("TP"), policy.reasons("EP")) if policy.helper is not None else ()
    return bool(axes) and all(
        any(flag.name in atom_set(policy.opened(reason.formula)) for reason in reasons) for reasons in axes
    )


def _choices(flag: Flag, context: Context) -> Iterator[tuple[Ref, GroupChoice]]:
    """The choices between two groups on the way from the functions that sum instead of a block."""
    index = context.index
    seen: set[Ref] = set()
    level = [ref for name in flag.sums for ref in defined(name, context)]
    for _ in range(_DEPTH):
        below: list[Ref] = []
        for ref in level:
            facts = index.facts(ref.path)
            if ref in seen or facts is None or ref.name not in facts.functions:
                continue
            seen.add(ref)
            found, called = facts.group_choices(ref.name)
            yield from ((ref, choice) for choice in found if _groups(choice, context))
            owner = ref.name.rpartition(".")[0] or None
            below += [target.function for callee in called for target in index.targets(ref.path, owner, callee)]
        level = below


def _told(condition: Formula, flag: Flag, context: Context) -> Formula:
    """A choice's condition with what all callers of the functions that sum tell them, by the same name, put in."""
    for name in atom_set(condition):
        values = set(_passed(name, flag, context)) if name.isidentifier() else set()
        value = values.pop() if len(values) == 1 else None
        condition = assign(condition, name, value) if value in (TRUE, FALSE) else condition
    return condition


def _passed(parameter: str, flag: Flag, context: Context) -> Iterator[Formula | None]:
    """What each call of a function that sums instead of a block has for a parameter; None where it is not known."""
    index, callers = context.index, context.callers
    for name in flag.sums:
        for path in index.holding(f".{name}("):
            facts = index.facts(path)
            for function in facts.functions_at(index.lines_of(path, f".{name}(")) if facts is not None else ():
                conduct = callers.conduct(Ref(path, function))
                for call in conduct.calls if conduct is not None else ():
                    for target in defined(name, context) if call.callee.rsplit(".", 1)[-1] == name else ():
                        bound = callers.bind(call, target, skip_first=True)
                        yield dict(callers.values(target, bound)).get(parameter)


def _groups(choice: GroupChoice, context: Context) -> tuple[str, ...]:
    """The two groups that a choice is between, if nothing but their sizes decides it."""
    launch = context.policy.profile.launch
    first, second = launch.size_of(choice.first), launch.size_of(choice.second)
    meanings = [launch.meaning(name) for name in atom_set(choice.test)]
    if first is None or second is None or first == second:
        return ()
    alone = all(meaning is not None and meaning[1] <= {first, second} for meaning in meanings)
    return (first, second) if alone else ()


def _settled_in_part(context: Context) -> Iterator[tuple[Site, Site, Configuration]]:
    """Two sums of what was deferred, over different groups, of which the first keeps the second from running."""
    launch = context.policy.profile.launch
    whole = launch.group_of("", "TP")
    functions: dict[Ref, list[tuple[str, Site]]] = {}
    for site in context.sites:
        group = launch.group_of(site.raw.collective, site.axis)
        if site.route is Route.DEFERRED and group not in (None, whole):
            functions.setdefault(Ref(site.path, site.raw.function), []).append((str(group), site))
    for found in functions.values():
        for (one, first), (other, second) in pairwise(found):
            if one != other and first.raw.operand == second.raw.operand:
                runs, left = (conj(part.formula for part in site.raw.guard) for site in (first, second))
                shown = _shown((runs, negate(left)), (one, other), context)
                if shown is not None:
                    yield first, second, shown


def _shown(formulas: Iterable[Formula], groups: tuple[str, ...], context: Context) -> Configuration | None:
    """A launch configuration with several ranks in both groups in which all of that may hold."""
    policy, launch = context.policy, context.policy.profile.launch
    holds = policy.opened(conj(formulas))
    unknown = [name for name in atom_set(holds) if launch.meaning(name) is None]
    try:
        return launch.find(exists(holds, unknown), groups)
    except TooManyAtoms:
        return None
