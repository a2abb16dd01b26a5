from __future__ import annotations

from collections.abc import Iterable

from moe_lint.absorbers import CombineSum, absorbers_of
from moe_lint.formula import FALSE, Formula, TooManyAtoms, assign, conj, disj, negate, satisfiable
from moe_lint.index import Ref
from moe_lint.model import Axis, Finding, Problem, Related, Route
from moe_lint.rules._cases import UTILS
from moe_lint.rules._central import asked_by_helper, at_definition, engine, unread
from moe_lint.rules.base import Context, Rule

_DISPATCHER = """\
from engine.distributed import get_tp_group
from engine.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather


class StandardDispatcher:
    def combine(self, x):
        if should_use_flashinfer_cutlass_moe_fp4_allgather():
            get_tp_group().reduce_scatterv(x)
        return x
"""
_BOTH_AXES = UTILS.replace(
    "return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()",
    "return should_use_flashinfer_cutlass_moe_fp4_allgather()",
)
_NO_FP4 = UTILS.replace("return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()", "return False")
_HEADER = "def should_skip_post_experts_all_reduce("


def _marked(utils: str) -> str:
    header = next(line for line in utils.splitlines() if line.startswith(_HEADER))
    return utils.replace(header, f"{header}  # <- MOE403")


class SummedInCombine(Rule):
    """The experts' dispatcher sums in a state in which the helper tells a block to reduce.

    Under some configurations the dispatcher's `combine` sums the partials itself and hands each rank its own tokens.
    What leaves `self.experts(x)` is whole then: a block that reduces once more sums twice, and over a group whose ranks
    hold different tokens it adds up rows that have nothing to do with each other. The helper has to know every such
    state, on both axes. One helper did so on the TP axis only: for a dozen releases, every EP all-reduce beside it
    added up outputs of different tokens in an FP4 configuration.

    A dispatcher

        def combine(self, x):
            if should_use_flashinfer_cutlass_moe_fp4_allgather():
                get_tp_group().reduce_scatterv(x)

    and a helper that skips for that reason on one axis:

        return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()

    Skip on both. The condition of a `combine` is compared where it asks global predicates only; one that looks at its
    arguments cannot be told from outside. No fix: the helper is central, a change there is yours to make.
    """

    code = "MOE403"
    name = "summed-in-combine"
    VALID = (
        engine("both-axes", utils=_BOTH_AXES, layers__moe__dispatcher=_DISPATCHER),
        engine("no-sum-in-the-dispatcher"),
        engine(
            "an-a2a-backend-that-the-helper-knows",
            utils=_BOTH_AXES.replace("allgather()\n", "allgather() or get_moe_a2a_backend().is_mori()\n"),
            layers__moe__dispatcher=_DISPATCHER.replace(
                "import should_use_flashinfer_cutlass_moe_fp4_allgather", "import get_moe_a2a_backend"
            ).replace("should_use_flashinfer_cutlass_moe_fp4_allgather()", "get_moe_a2a_backend().is_mori()"),
        ),
        engine(
            "another-group",
            layers__moe__dispatcher=_DISPATCHER.replace("get_tp_group()", "get_attention_tp_group()"),
        ),
        engine(
            "its-own-arguments-decide",
            layers__moe__dispatcher=_DISPATCHER.replace(
                "if should_use_flashinfer_cutlass_moe_fp4_allgather():", "if x.format.is_standard():"
            ),
        ),
    )
    INVALID = (
        engine(
            "an-a2a-backend-that-sums",
            utils=_marked(_BOTH_AXES),
            layers__moe__dispatcher=_DISPATCHER.replace(
                "import should_use_flashinfer_cutlass_moe_fp4_allgather", "import get_moe_a2a_backend"
            ).replace("should_use_flashinfer_cutlass_moe_fp4_allgather()", "get_moe_a2a_backend().is_mori()"),
        ),
        engine("tp-axis-only", utils=_marked(UTILS), layers__moe__dispatcher=_DISPATCHER),
        engine("neither-axis", utils=_marked(_NO_FP4), layers__moe__dispatcher=_DISPATCHER),
        engine(
            "half-of-the-condition",
            utils=_marked(
                UTILS.replace(
                    "return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()",
                    "return should_use_flashinfer_cutlass_moe_fp4_allgather() and get_moe_a2a_backend().is_none()",
                )
            ),
            layers__moe__dispatcher=_DISPATCHER,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        helper = context.policy.helper
        if helper is None or helper.proposed:
            return
        for found in absorbers_of(context.policy).combines:
            broken = {axis: holds for axis in _axes(context) if (holds := _broken(found, axis, context)) is not None}
            if not broken:
                continue
            axes = " and ".join(broken)
            axis, holds = next(iter(broken.items()))
            shown = context.policy.configuration(holds, axis)
            sites = sum(1 for site in context.judged() if site.route is Route.HELPER and site.axis in broken)
            yield at_definition(
                self,
                Ref(helper.path, helper.name),
                f"`{helper.name}` does not skip on the {axes} ax{'is' if len(broken) == 1 else 'es'} "
                f"where `{found.owner}` sums by itself, when `{found.condition}`",
                context,
                witness=f"{f'with {shown} ' if shown is not None else ''}the experts' output is whole already: "
                f"{sites} reduction{'' if sites == 1 else 's'} that ask{'s' if sites == 1 else ''} this helper "
                "sum it once more, and over ranks that hold different tokens",
                remedy=f"skip for `{found.condition}` on both axes",
                related=(Related(found.path, found.line, f"`{found.owner}` sums here"),),
            )

    def unjudged(self, context: Context) -> Iterable[Problem]:
        return unread(asked_by_helper(context), context)


def _axes(context: Context) -> list[Axis]:
    """The axes that some reduction in the tree asks the helper about."""
    asked = {site.axis for site in context.judged() if site.route is Route.HELPER}
    order: tuple[Axis, ...] = ("TP", "EP")
    return [axis for axis in order if axis in asked]


def _broken(found: CombineSum, axis: Axis, context: Context) -> Formula | None:
    """When the dispatcher sums and the helper, told no flag, says that the block must; None if never."""
    policy = context.policy
    skips = disj(reason.formula for reason in policy.reasons(axis))
    for flag in policy.profile.flags:
        skips = assign(skips, flag.name, FALSE)
    coarse = conj((found.condition, negate(skips)))
    try:
        if not satisfiable(coarse) or not satisfiable(policy.opened(coarse)):
            return None
    except TooManyAtoms:
        return None
    return coarse
