from __future__ import annotations

from collections.abc import Iterable
from textwrap import indent

from moe_lint.absorbers import Twin, absorbers_of
from moe_lint.formula import FALSE, Formula, State, TooManyAtoms, assign, atom_set, compare, conj, disj, negate, table
from moe_lint.model import Confidence, Finding, Problem, Related, Severity
from moe_lint.rules._central import STEP, at_definition, communicator, engine, questions, told, unread
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import is_skip_atom

_PROMISE = """
if not self.allow_reduce_scatter:
    return should_use_dp_reduce_scatterv() and self.step is Steps.scatter
if self.step is Steps.scatter:
    if should_use_dp_reduce_scatterv():
        return True
    if batch.padding.is_max_len():
        return True
return False
"""
_SHORTSTEP = """
if allow_reduce_scatter and batch.padding.is_max_len():
    dp_reduce_scatter_tensor(x)
else:
    dp_scatter(x)
"""


_PERMITTED = """
return (
    self.allow_reduce_scatter
    and self.step is Steps.scatter
    and batch.padding.is_max_len()
)
"""
_HEAD = "def should_use_reduce_scatter(self, batch):"
_BY_A_METHOD = "\n        return self.promises(batch)\n\n    def promises(self, batch):"
_STEP = indent(STEP.strip(), "    ").replace("allow_reduce_scatter", "permitted")
_SUMS = f"def summed(x, batch, permitted):\n{_STEP}\n"
_IN_A_FUNCTION = "summed(x, batch, allow_reduce_scatter)"


class TwinDrift(Rule):
    """A communicator's promise to reduce-scatter and the step that does it depend on different conditions.

    `should_use_reduce_scatter` tells the blocks not to reduce; a step of the communicator sums later instead. These are
    two functions with one meaning. Where the step sums and the promise was not given, every layer that goes by the
    flag (a block with a guard of its own, a dense MLP) has reduced already: summed twice. Where the promise was given
    and the step only scatters, nobody sums and each rank keeps its own partial.

    A communicator that promises less than it does:

        def should_use_reduce_scatter(self, batch):
            return (
                self.allow_reduce_scatter
                and self.step is Steps.scatter
                and batch.padding.is_max_len()
            )

        def scatter(x, batch, allow_reduce_scatter):
            if should_use_dp_reduce_scatterv():
                get_tp_group().reduce_scatterv(x)
            elif allow_reduce_scatter and batch.padding.is_max_len():
                dp_reduce_scatter_tensor(x)

    Ask `should_use_dp_reduce_scatterv()` in the promise, too. It is an error where a block that asks the helper goes
    wrong, and a warning where the helper knows the missing reason by itself, so that only layers that go by the flag
    alone are hit. Only a promise that names its step (`self.step is Steps.scatter`) can be compared; a method that it
    asks, and a function that the step calls, are looked into. No fix: both functions are central, and which of them is
    right is your decision.
    """

    code = "MOE401"
    name = "twin-drift"
    confidence = Confidence.MEDIUM
    VALID = (
        engine("same-conditions", layers=communicator(_PROMISE, STEP)),
        engine("same-by-a-method", layers=communicator(_PROMISE, STEP).replace(_HEAD, _HEAD + _BY_A_METHOD)),
        engine("same-in-a-function", layers=communicator(_PROMISE, _IN_A_FUNCTION) + _SUMS),
        engine(
            "one-condition",
            layers=communicator(
                """
                return (
                    self.allow_reduce_scatter
                    and self.step is Steps.scatter
                    and batch.padding.is_max_len()
                )
                """,
                _SHORTSTEP,
            ),
        ),
        engine(
            "promise-of-another-absorber",
            layers=communicator(
                """
                if not self.allow_reduce_scatter:
                    return False
                if self.step is Steps.scatter and batch.padding.is_max_len():
                    return True
                return uses_prefill_cp(batch)
                """,
                _SHORTSTEP,
            ),
        ),
        engine(
            "no-step-named",
            layers=communicator("return self.allow_reduce_scatter and batch.padding.is_max_len()", STEP),
        ),
        engine(
            "nothing-summed-for-an-empty-batch",
            layers=communicator(
                """
                return (
                    self.allow_reduce_scatter
                    and self.step is Steps.scatter
                    and batch.padding.is_max_len()
                )
                """,
                """
                if x.shape[0] > 0 and allow_reduce_scatter and batch.padding.is_max_len():
                    dp_reduce_scatter_tensor(x)
                """,
            ),
        ),
    )
    INVALID = (
        engine(
            "promise-by-a-method",
            layers=communicator(_PERMITTED, STEP).replace(_HEAD, f"{_HEAD}  # <- MOE401{_BY_A_METHOD}"),
        ),
        engine(
            "step-in-a-function",
            layers=communicator(_PERMITTED, _IN_A_FUNCTION).replace(_HEAD, f"{_HEAD}  # <- MOE401") + _SUMS,
        ),
        engine(
            "step-sums-without-a-promise",
            layers=communicator(
                """
                return (
                    self.allow_reduce_scatter
                    and self.step is Steps.scatter
                    and batch.padding.is_max_len()
                )
                """,
                STEP,
            ).replace(
                "def should_use_reduce_scatter(self, batch):",
                "def should_use_reduce_scatter(self, batch):  # <- MOE401",
            ),
        ),
        engine(
            "promise-without-a-sum",
            layers=communicator(
                """
                return self.step is Steps.scatter and batch.padding.is_max_len()
                """,
                _SHORTSTEP,
            ).replace(
                "def should_use_reduce_scatter(self, batch):",
                "def should_use_reduce_scatter(self, batch):  # <- MOE401",
            ),
        ),
        engine(
            "step-forgets-the-permission",
            layers=communicator(
                """
                return (
                    self.allow_reduce_scatter
                    and self.step is Steps.scatter
                    and batch.padding.is_max_len()
                )
                """,
                """
                if batch.padding.is_max_len():
                    dp_reduce_scatter_tensor(x)
                else:
                    dp_scatter(x)
                """,
            ).replace(
                "def should_use_reduce_scatter(self, batch):",
                "def should_use_reduce_scatter(self, batch):  # <- MOE401",
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for twin in absorbers_of(context.policy).twins:
            try:
                over, under = _differences(twin, context)
            except TooManyAtoms:
                continue
            step, promise = twin.step.name.rpartition(".")[2], twin.flag.predicate
            sums = Related(twin.step.path, twin.line, f"`{step}` sums here")
            flag = f"`{twin.flag.name}`"
            broken = conj((twin.summed, negate(twin.promised)))
            kept = conj((twin.promised, negate(twin.summed)))
            if over is not None:
                knows = _helper_knows(twin, context)
                yield at_definition(
                    self,
                    twin.promise,
                    f"`{promise}` says no where `{step}` sums: a layer that goes by {flag}{' alone' if knows else ''} "
                    "has summed by then",
                    context,
                    severity=Severity.WARNING if knows else None,
                    witness=_told(
                        over,
                        broken,
                        "the output of such a layer is summed twice: multiplied by the group size",
                        context,
                    ),
                    remedy=f"ask in `{promise}` what `{step}` asks",
                    related=(sums,),
                )
            if under is not None:
                yield at_definition(
                    self,
                    twin.promise,
                    f"`{promise}` says yes where `{step}` does not sum: a block that goes by {flag} leaves its sum out",
                    context,
                    witness=_told(under, kept, "nobody sums: each rank keeps its own partial sum", context),
                    remedy=f"ask in `{promise}` what `{step}` asks",
                    related=(sums,),
                )

    def unjudged(self, context: Context) -> Iterable[Problem]:
        return unread(questions(context), context)


def _differences(twin: Twin, context: Context) -> tuple[State | None, State | None]:
    """(a state in which the step sums without a promise, one in which it does not keep the promise)."""
    coarse = _compared(twin.promised, twin.summed, context)
    if coarse == (None, None):
        return coarse
    deep = _compared(context.policy.opened(twin.promised), context.policy.opened(twin.summed), context)
    return coarse[0] if deep[0] is not None else None, coarse[1] if deep[1] is not None else None


def _compared(promised: Formula, summed: Formula, context: Context) -> tuple[State | None, State | None]:
    asked = atom_set(summed)
    over = compare(summed, negate(promised), kept=asked).over
    # what only the promise asks may concern another absorber: taken as not given
    own = promised
    for name in sorted(atom_set(promised) - asked):
        own = assign(own, name, FALSE)
    # what only the step asks about its tensors may go either way; what it asks the communicator or the tree may not
    fixed = frozenset(n for n in asked if n.startswith("self.") or is_skip_atom(n, context.policy.profile))
    return over, compare(summed, negate(own), kept=fixed).under


def _helper_knows(twin: Twin, context: Context) -> bool:
    """Whether the helper skips by itself, told no flag, wherever the step sums without a promise."""
    policy = context.policy
    if policy.helper is None or policy.helper.proposed:
        return False
    silent = {flag.name: FALSE for flag in policy.profile.flags}
    for axis in ("TP", "EP"):
        skips = policy.opened(disj(reason.formula for reason in policy.reasons("EP" if axis == "EP" else "TP")))
        for name, value in silent.items():
            skips = assign(skips, name, value)
        broken = conj((policy.opened(twin.summed), negate(policy.opened(twin.promised)), negate(skips)))
        try:
            if table(broken, sorted(atom_set(broken))):
                return False
        except TooManyAtoms:
            return False
    return True


def _told(state: State, formula: Formula, consequence: str, context: Context) -> str:
    found = context.policy.configuration(state.formula, "TP")
    example = f" (for example {found})" if found is not None else ""
    return f"with {told(state, formula)}{example} {consequence}"
