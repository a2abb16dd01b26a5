from __future__ import annotations

import re
from collections.abc import Iterable

from moe_lint.formula import Atom, atom_set
from moe_lint.index import Ref
from moe_lint.model import Confidence, Finding
from moe_lint.rules._cases import ASK, CALL, ROUTED, SETTLE, Piece, block, experts, layer_case, method
from moe_lint.rules._layers import absorbs, call_finding, callee_name, launch, place, runs_in_spite_of
from moe_lint.rules.base import Case, Context, Rule

_GUARD = """
if self.tp_size > 1 and not should_skip_post_experts_all_reduce(is_tp_path=True, {}):
    x = tensor_model_parallel_all_reduce(x)
"""
_BOTH = _GUARD.format("use_reduce_scatter=scatter, should_allreduce_fusion=fuse")
_ONE = _GUARD.format("should_allreduce_fusion=fuse")
_INNER = "self.inner = Block(config)"
_LAYER = ASK + CALL + SETTLE
_POSITIONS = "return self.routed(x, should_allreduce_fusion, use_reduce_scatter)"


def _handed(name: str, call: str, guard: str, parameters: str = "x, fuse=False, scatter=False", *others: Piece) -> Case:
    """A block that hands its flags to a method, which has names of its own for them."""
    return layer_case(name, block(method(call), experts(guard, "routed", parameters), *others), layer=_LAYER)


def _handed_once(name: str, call: str, guard: str) -> Case:
    """The same where another caller of that method hands it no flag: its parameters are not always those flags."""
    return _handed(name, call, guard, "x, fuse=False, scatter=False", method("return self.routed(x)", "warm_up", "x"))


class FlagLostOnTheWay(Rule):
    """A function is handed a layer-context flag under another name, and reduces although the flag is set.

    A method in the middle of the way may call a flag what it likes (`fuse`, `skip`). But with the name goes what keeps
    the flags apart: a second one is taken and never asked, or two are joined by `and` where each is a reason of its
    own. The all-reduce then runs although the layer's communicator sums, too, and every token is scaled by the group
    size.

    Instead of

        def routed(self, x, fuse, scatter):
            x = self.experts(x)
            if self.tp_size > 1 and not fuse:
                x = tensor_model_parallel_all_reduce(x)

    ask the helper, with all that the function was handed:

        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
            is_tp_path=True, use_reduce_scatter=scatter, should_allreduce_fusion=fuse
        ):

    Only where the values prove it: a guard that asks something unknown besides is not reported. Where every caller
    hands a function the same flag by a parameter, the rules on the guard know it by that name (MOE001, MOE005), and say
    so at the reduction. Reported at the call that hands the flag over. There is no fix: which of the names stands for
    what is for the model to say.
    """

    code = "MOE207"
    name = "flag-lost-on-the-way"
    confidence = Confidence.MEDIUM
    VALID = (
        _handed("by-position", _POSITIONS, _BOTH),
        _handed("without-defaults", _POSITIONS, _BOTH, "x, fuse, scatter"),
        _handed(
            "by-keyword",
            "return self.routed(x, scatter=use_reduce_scatter, fuse=should_allreduce_fusion)",
            _BOTH,
        ),
        _handed(
            "either-is-a-reason",
            "return self.routed(x, should_allreduce_fusion or use_reduce_scatter)",
            _ONE,
            "x, fuse",
        ),
        _handed("the-other-way-round", "return self.routed(x, use_reduce_scatter, should_allreduce_fusion)", _BOTH),
        _handed(
            "asked-for-something-unknown",
            _POSITIONS,
            "\nif not self.defers(fuse, scatter):\n    x = tensor_model_parallel_all_reduce(x)",
        ),
        _handed("known-at-the-guard", _POSITIONS, _ONE),
        _handed_once("handed-by-one-of-two", _POSITIONS, _BOTH),
        layer_case(
            "in-a-block-between",
            block(experts(ROUTED)),
            block(
                "def forward(self, x, fuse, scatter):\n    return self.inner(x, fuse, scatter)",
                name="Outer",
                init=_INNER,
            ),
            build="self.mlp = Outer(config)",
            layer=_LAYER,
        ),
    )
    INVALID = (
        _handed_once("one-is-never-asked", f"{_POSITIONS}  # <- MOE207", _ONE),
        _handed(
            "both-are-asked-for",
            "return self.routed(x, should_allreduce_fusion and use_reduce_scatter)  # <- MOE207",
            _ONE,
            "x, fuse",
        ),
        _handed_once(
            "asked-by-hand", f"{_POSITIONS}  # <- MOE207", "\nif not fuse:\n    x = tensor_model_parallel_all_reduce(x)"
        ),
        _handed_once(
            "by-keyword-and-never-asked",
            "return self.routed(x, scatter=use_reduce_scatter, fuse=should_allreduce_fusion)  # <- MOE207",
            _GUARD.format("use_reduce_scatter=scatter"),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        callers = context.callers
        told: set[tuple[str, object]] = set()
        for layer, _, edge in callers.calls:
            for flag in context.index.profile.flags:
                name = callers.renamed(edge.target, flag.name)
                place_of_call = (edge.frame.path, edge.call.span)
                if name is None or place_of_call in told or not absorbs(callers, layer, edge, flag):
                    continue
                found = runs_in_spite_of(callers, edge, flag.name)
                if found is None or Ref(found.site.path, found.site.raw.function) != edge.target.function:
                    continue  # what is called further on is judged there
                if flag.name in found.site.known_flags:
                    continue  # the rules on its guard know the flag by this name
                unread = re.compile(rf"\b(?:{name}|{flag.name})\b")
                if any(unread.search(atom) for atom in atom_set(found.condition) - {flag.name}):
                    continue  # it is handed to something that is not known
                told.add(place_of_call)
                yield call_finding(
                    self,
                    edge.frame,
                    edge.call,
                    f"`{callee_name(edge)}` is handed `{flag.name}` as `{name}`, and its all-reduce still runs when it "
                    f"is set: {flag.absorber} sums again, which scales the output by the group size"
                    f"{launch(context, Atom(flag.name), found)}",
                    remedy=f"ask the helper there, with every flag that `{callee_name(edge)}` is handed",
                    related=(place(found),),
                )
