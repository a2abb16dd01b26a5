from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Related
from moe_lint.rules._cases import BARE, ROUTED, case, experts, method
from moe_lint.rules._in_turn import summed_in_turn
from moe_lint.rules.base import Case, Context, Rule

_MARKED = BARE.rstrip() + "  # <- MOE309"
_PAIR = """
if self.ep_size > 1:
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1:
    x = moe_tensor_model_parallel_all_reduce(x)
"""
_WHOLE = case("", experts(_PAIR.replace("moe_tensor", "tensor").rstrip() + "  # <- MOE309"), absorber=False)
_NARROW = """
def moe_tensor_model_parallel_all_reduce(x):
    return get_moe_tp_group().all_reduce(x)
"""


def _in_turn(
    first: str = "self.tp_size > 1",
    second: str = "self.tp_size > 1",
    joined: str = "self.finished(x + self.scaled(y), done)",
    mark: str = "",
) -> tuple[str, ...]:
    """A block that sums a term in a method, and what it joins in another."""
    return (
        method(f"done = x.numel() > 9\ny = self.summed(x, done)\nx = self.experts(x)\nx = {joined}", parameters="x"),
        "def scaled(self, y):\n    return y * 2\n",
        f"def summed(self, y, done):\n    y = self.shared(y)\n    if {first}:\n"
        "        y = tensor_model_parallel_all_reduce(y)\n    return y\n",
        f"def finished(self, x, done=False):\n    if {second}:\n"
        f"        x = tensor_model_parallel_all_reduce(x){mark}\n    return x\n",
    )


class ReducedTwice(Rule):
    """A block sums over the ranks what it has summed over them before.

    A second all-reduce of the same tensor adds up results that are whole already: every token is scaled by the group
    size. It comes with a merge that keeps both versions of a line, with a method that has begun to reduce for itself,
    or with a shared expert whose term is summed before it joins what is summed in the end.

    Instead of

        shared = tensor_model_parallel_all_reduce(self.shared_experts(x))
        x = self.experts(x) + shared
        x = tensor_model_parallel_all_reduce(x)

    sum once, what the block hands on:

        x = self.experts(x) + self.shared_experts(x)
        x = tensor_model_parallel_all_reduce(x)

    Also where the two sums are in two methods, and `forward` hands on to the one what the other returned. Not
    reported: an EP and a TP sum of one tensor, which are over different ranks, and sums that run under opposite
    conditions. Reported at the second sum. There is no fix: which of the two may go is for the model to say.
    """

    code = "MOE309"
    name = "reduced-twice"
    follows = True
    VALID = (
        case("once", experts(ROUTED)),
        case("over-two-axes", experts(_PAIR), absorber=False),
        case(
            "over-two-axes-in-a-tree-with-one-tp-sum",
            experts(_PAIR.replace("moe_tensor", "tensor")),
            absorber=False,
        ),
        case(
            "one-or-the-other",
            experts(
                """
                if x.shape[0] > 1:
                    x = tensor_model_parallel_all_reduce(x)
                else:
                    x = tensor_model_parallel_all_reduce(x)
                """
            ),
            absorber=False,
        ),
        case(
            "unless-a-method-has",
            experts(
                """
                x, done = self.joined(x)
                if self.tp_size > 1 and not done:
                    x = tensor_model_parallel_all_reduce(x)
                """
            ),
            method("\nif self.early:\n    return tensor_model_parallel_all_reduce(x), True", "joined", "x").replace(
                "return x\n", "return x, False\n"
            ),
            absorber=False,
        ),
        case("in-two-methods-of-which-one-sums", *_in_turn("done", "not done"), absorber=False),
        case("in-two-methods-of-which-one-may-not", *_in_turn(second="self.late"), absorber=False),
        case("in-two-methods-on-two-terms", *_in_turn(joined="self.scaled(y) + self.finished(x)"), absorber=False),
        case(
            "in-a-method-that-says-whether-it-has",
            *(
                text.replace("y = self.summed(x, done)", "y, done = self.summed(x, done)").replace(
                    "return y", "return y, True"
                )
                for text in _in_turn(second="not done")
            ),
            absorber=False,
        ),
        case(
            "attention-before",
            method("x = tensor_model_parallel_all_reduce(self.attention(x))\nx = self.experts(x)\n" + BARE.strip()),
            absorber=False,
        ),
    )
    INVALID = (
        case("in-two-methods-one-after-the-other", *_in_turn(mark="  # <- MOE309"), absorber=False),
        case(
            "in-two-methods-that-ask-the-same",
            *_in_turn("x.shape[0] > 1", "x.shape[0] > 1", mark="  # <- MOE309"),
            absorber=False,
        ),
        case("in-a-row", experts(BARE.strip() + "\nx = x.view(-1)" + _MARKED), absorber=False),
        case(
            "a-term-before-it-joins",
            experts(
                """
                shared = tensor_model_parallel_all_reduce(self.shared(x))
                x = x + shared
                if self.tp_size > 1:
                    x = tensor_model_parallel_all_reduce(x)  # <- MOE309
                """
            ),
            absorber=False,
        ),
        case(
            "in-a-method-and-behind-it",
            method("x, y = self.both(x)\nx = x + y" + _MARKED, parameters="x"),
            "def both(self, x):\n    y = tensor_model_parallel_all_reduce(self.experts(x))\n    return y, x\n",
            absorber=False,
        ),
        Case("over-all-ranks-behind-an-axis", {**_WHOLE.files, "engine/distributed.py": _NARROW}),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        told = set()
        for site, before, shown in (*context.ways.summed_before(), *summed_in_turn(context)):
            if (site.path, site.raw.span) in told:
                continue
            told.add((site.path, site.raw.span))
            term = "what it is handed" if site.raw.operand == before.raw.target else "a term of what it is handed"
            yield self.finding(
                site,
                f"{term} was summed over these ranks before, on line {before.raw.span.line}: this all-reduce counts "
                f"it once more for every rank (for example {shown})",
                context,
                related=(Related(before.path, before.raw.span.line, "summed here"),),
                remedy="sum once, behind everything that the ranks share",
            )
