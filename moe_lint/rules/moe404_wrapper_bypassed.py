from __future__ import annotations

from collections.abc import Iterable

from moe_lint.formula import Relation
from moe_lint.model import Confidence, Finding, Related, Route, Severity
from moe_lint.rules._cases import UTILS, Written, experts, model
from moe_lint.rules._central import engine
from moe_lint.rules.base import Case, Context, Rule
from moe_lint.sites import Site

_CONTEXT = UTILS.replace(
    "def should_skip_post_experts_all_reduce(*, is_tp_path, use_reduce_scatter=False, should_allreduce_fusion=False):\n"
    "    if should_allreduce_fusion or use_reduce_scatter:\n",
    "def should_skip_post_experts_all_reduce(*, is_tp_path):\n"
    "    if get_forward().should_allreduce_fusion or get_forward().use_reduce_scatter:\n",
)
_WRAPPERS = (
    _CONTEXT
    + """

def reduce_moe_output(x):
    if get_tensor_model_parallel_world_size() > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
        x = tensor_model_parallel_all_reduce(x)
    return x


def post_experts_all_reduce(x):
    if get_parallel().moe_ep_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=False):
        x = moe_expert_parallel_all_reduce(x)
    if get_parallel().moe_tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
        x = moe_tensor_model_parallel_all_reduce(x)
    return x
"""
)
_TP = """
if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
    x = {}(x)
"""
_EP = """
if self.ep_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=False):
    x = moe_expert_parallel_all_reduce(x)
"""


def _tree(name: str, body: str, utils: str = _WRAPPERS) -> Case:
    wrappers = "from engine.layers.moe.utils import post_experts_all_reduce, reduce_moe_output\n"
    block = Written(lambda: f"{wrappers}{model(experts(body, parameters='x'))}")
    return engine(name, utils=utils, models__pretend=block)


class WrapperBypassed(Rule):
    """A block asks the helper and reduces by itself, where the tree has a function that does just that.

    A tree that has `reduce_moe_output` or `post_experts_all_reduce` keeps guard and collective in one place: there both
    sums of an EP/TP pair are merged into one, and there the next reason to leave a sum out will be added. A block that
    does the same by hand is right today, and the next change of the wrapper passes it by.

    Instead of

        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=False):
            x = moe_expert_parallel_all_reduce(x)
        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True):
            x = moe_tensor_model_parallel_all_reduce(x)

    write

        x = post_experts_all_reduce(x)

    Off unless selected: nothing is wrong with the numbers. A guard with conditions of its own is not reported, nor is a
    wrapper that has to be told flags. No fix: the group sizes that the two ask may be spelled differently.
    """

    code = "MOE404"
    name = "wrapper-bypassed"
    severity = Severity.INFO
    confidence = Confidence.LOW
    VALID = (
        _tree("wrapper", "x = post_experts_all_reduce(x)"),
        _tree("no-such-wrapper", _TP.format("tensor_model_parallel_all_reduce"), utils=_CONTEXT),
        _tree(
            "a-condition-of-its-own",
            _TP.format("tensor_model_parallel_all_reduce").replace("if ", "if x.shape[0] > 0 and "),
        ),
        _tree("half-of-a-pair", _EP),
    )
    INVALID = (
        _tree("one", _TP.format("tensor_model_parallel_all_reduce").replace("(x)\n", "(x)  # <- MOE404\n")),
        _tree(
            "pair",
            _EP.replace("reduce(x)\n", "reduce(x)  # <- MOE404\n") + _TP.format("moe_tensor_model_parallel_all_reduce"),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        single = {name: w.name for name, w in context.wrappers.items() if not w.takes_flags}
        for group in _by_function(context.judged()):
            site = group[0]
            if not all(_plain(member) for member in group) or site.method in context.policy.profile.wrappers:
                continue
            axes = [member.axis for member in group]
            pair = context.pair_wrappers.get(frozenset(member.raw.collective for member in group))
            name = pair.name if pair is not None and sorted(axes) == ["EP", "TP"] else None
            name = single.get(site.raw.collective) if len(group) == 1 else name
            if name is None:
                continue
            yield self.finding(
                site,
                f"asks the helper and reduces by hand, where `{name}` does both: "
                "the next change of that function passes this block by",
                context,
                remedy=f"call `{name}`",
                related=tuple(
                    Related(other.path, other.raw.span.line, "the other sum of the pair") for other in group[1:]
                ),
            )


def _by_function(sites: Iterable[Site]) -> Iterable[list[Site]]:
    found: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        found.setdefault((site.path, site.raw.function), []).append(site)
    return found.values()


def _plain(site: Site) -> bool:
    """Whether a guard asks the helper and group sizes, and nothing else."""
    return (
        site.route is Route.HELPER
        and site.relation is Relation.EQUAL
        and len(site.raw.guard) == 1
        and str(site.guard).count(" and ") == 0
    )
