from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import cleandoc
from textwrap import indent

from moe_lint.callers import Frame
from moe_lint.facts import Call, Conduct, is_reduction_name
from moe_lint.formula import Atom, atom_set, conj, disj, implies, negate
from moe_lint.index import Ref
from moe_lint.model import Confidence, Finding
from moe_lint.rules._cases import ASK, CALL, COMMUNICATOR, ROUTED, SETTLE, block, experts, layer_case, when_read
from moe_lint.rules._layers import call_finding, launch
from moe_lint.rules.base import Case, Context, Rule

_FUSED = "return self.norm.forward_with_allreduce_fusion(x, residual)"
_MARKED = 'if getattr(x, "_sglang_needs_allreduce_fusion", False):\n'
_REDUCED = "x = tensor_model_parallel_all_reduce(x)\n"
_SPLIT = """
if can_fuse(x) and hasattr(self.norm, "forward_with_allreduce_fusion"):
    return self.norm.forward_with_allreduce_fusion(x, residual)
"""


@when_read
def _case(name: str, marked: str, behind: str = "return self.norm(x, residual)", asked: str = _MARKED) -> Case:
    """A communicator that does this with a marked tensor, and that behind it."""
    plain = layer_case(name, block(experts(ROUTED)), layer=ASK + CALL + SETTLE)
    path = "engine/layers/communicator.py"
    head, _, tail = COMMUNICATOR.partition("    def prepare(")
    body = f"{asked}{indent(cleandoc(marked), '    ')}\n{behind}\n"
    prepare = f"    def prepare(self, x, residual):\n{indent(body, '        ')}\n"
    return Case(
        name, {**plain.files, path: head + prepare + "    def postprocess" + tail.partition("    def postprocess")[2]}
    )


class MarkedAndNotSummed(Rule):
    """A tensor that is marked as owing its sum is normed, and nobody has summed it.

    A block that defers its sum leaves a partial tensor, and the layer marks it. Whoever asks for the mark has to sum:
    by a norm that is fused with the all-reduce or, where that kernel cannot run, by a plain all-reduce in front of a
    plain norm. A branch in between that only norms (for another platform, another format, a shape that the kernel does
    not take) loses the sum: each rank goes on with its own partial sum.

    Instead of

        if getattr(x, "_sglang_needs_allreduce_fusion", False):
            if can_fuse(x):
                x, residual = self.norm.forward_with_allreduce_fusion(x, residual)
            else:
                x, residual = self.norm(x, residual)

    sum in every branch:

            else:
                x = tensor_model_parallel_all_reduce(x)
                x, residual = self.norm(x, residual)

    Looked at are branches that hold for marked tensors only. Not reported: what is handed to something that is not
    known on the way, as that may sum. Reported at the norm. There is no fix: over which group the fused norm would have
    summed is for the communicator to say.
    """

    code = "MOE407"
    name = "marked-and-not-summed"
    confidence = Confidence.MEDIUM
    VALID = (
        _case("fused", _FUSED),
        _case("fused-or-summed", f"{_SPLIT}{_REDUCED}return self.norm(x, residual)"),
        _case("summed", f"{_REDUCED}return self.norm(x, residual)"),
        _case("summed-behind-a-mark-that-is-kept", _REDUCED.strip()),
        _case("normed-where-it-is-not-marked", _FUSED, "x = self.norm(x)\nreturn x, residual"),
        _case("settled-elsewhere", "x = self.settle(x)\nreturn self.norm(x, residual)"),
        _case("another-tensor", f"residual = self.norm(residual)\n{_FUSED}"),
    )
    INVALID = (
        _case("only-normed", "return self.norm(x, residual)  # <- MOE407"),
        _case("fused-or-only-normed", f"{_SPLIT}return self.norm(x, residual)  # <- MOE407"),
        _case(
            "a-platform-of-its-own",
            f"if _is_npu:\n    return self.norm(x, residual)  # <- MOE407\n{_REDUCED}return self.norm(x, residual)",
        ),
        _case(
            "asked-by-attribute",
            f"{_SPLIT}return self.norm(x, residual)  # <- MOE407",
            asked='if hasattr(x, "_sglang_needs_allreduce_fusion") and x._sglang_needs_allreduce_fusion:\n',
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for function, tensor, call in _unsummed(context):
            flag = next(flag for flag in context.index.profile.flags if flag.last)
            yield call_finding(
                self,
                Frame(function, None),
                call,
                f"`{tensor}` is marked as owing its sum here and goes into `{call.callee}` without one: each rank goes "
                f"on with its own partial sum{launch(context, Atom(flag.name))}",
                remedy=f"sum `{tensor}` first, as the fused norm does",
            )


def _unsummed(context: Context) -> Iterator[tuple[Ref, str, Call]]:
    """(function, tensor, norm) of the norms that a marked tensor may go into without a sum."""
    index = context.index
    for marker in index.profile.markers if any(flag.last for flag in index.profile.flags) else ():
        for path in index.holding(marker):
            facts = index.facts(path)
            for name in facts.functions_at(index.lines_of(path, marker)) if facts is not None else ():
                conduct = context.callers.conduct(Ref(path, name))
                for call in conduct.calls if conduct is not None else ():
                    tensor = call.arguments[0].text if call.arguments else ""
                    if conduct is not None and _is_marked(call, tensor, marker) and _is_lost(call, conduct, context):
                        yield Ref(path, name), tensor, call


def _is_marked(call: Call, tensor: str, marker: str) -> bool:
    """Whether a call is made for a marked tensor only."""
    question = re.compile(rf"\b{re.escape(tensor)}\b.*(?:\.{marker}|, '{marker}', False\))$")
    asked = filter(question.search, atom_set(call.condition)) if tensor.isidentifier() else ()
    return any(implies(call.condition, Atom(name)) for name in asked)


def _is_lost(call: Call, conduct: Conduct, context: Context) -> bool:
    """Whether a call is a norm, and nobody before it may have summed what it is given."""
    if not context.index.profile.is_barrier(call.callee.rsplit(".", 1)[-1]):
        return False
    tensor = call.arguments[0].text
    before = (c.condition for c in conduct.calls if c.span < call.span and _may_sum(c, tensor, conduct, context))
    return context.callers.possible(conj((call.condition, negate(disj(before)))), unknown=False)


def _may_sum(call: Call, tensor: str, conduct: Conduct, context: Context) -> bool:
    """Whether a call sums a tensor, or is given it and not known to leave it as it is."""
    profile = context.index.profile
    last = call.callee.rsplit(".", 1)[-1]
    fused = any(last.startswith(name) for flag in profile.flags for name in flag.sums)
    if fused or is_reduction_name(last) or last in profile.collectives or last in profile.wrappers:
        return True
    given = any(passed.text == tensor for passed in call.arguments)
    question = last in ("hasattr", "getattr", "isinstance") or any(
        f"{call.callee}(" in name for one in conduct.calls for name in atom_set(one.condition)
    )
    return given and not question and not profile.is_barrier(last)
