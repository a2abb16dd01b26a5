from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from msgspec import Struct

from moe_lint.formula import (
    FALSE,
    Atom,
    Comparison,
    Formula,
    Relation,
    TooManyAtoms,
    atom_set,
    compare,
    conj,
    negate,
    substitute,
)
from moe_lint.index import Ref
from moe_lint.model import Confidence, Finding, Problem, Related, Severity
from moe_lint.rules._cases import COMMUNICATOR
from moe_lint.rules._central import asked_by_helper, at_definition, defined, engine, line_of, questions, unread
from moe_lint.rules._wording import named
from moe_lint.rules.base import Context, Rule
from moe_lint.sites import is_skip_atom

#: `self._scatter_fn is Steps._scatter`, where each communicator has steps of its own
_CHOSEN = re.compile(r"^.+ (?:is|==) ([\w.]+\.(\w+))$")

_BASE = (
    COMMUNICATOR
    + """
    def should_use_reduce_scatter(self, batch):
        return self.allowed and (should_use_dp_reduce_scatterv() or batch.padded)
"""
)
_OWN = """\
from engine.layers.communicator import LayerCommunicator


class OwnCommunicator(LayerCommunicator):
    def should_use_reduce_scatter(self, batch):{mark}
        return {value}
"""
_COPY = '''\
from engine.layers.moe.utils import should_use_dp_reduce_scatterv


def should_skip_post_experts_all_reduce(*, is_tp_path, use_reduce_scatter=False, should_allreduce_fusion=False):{mark}
    """The plugin's own."""
    return {value}
'''
_WHOLE = (
    "should_allreduce_fusion or use_reduce_scatter or should_use_dp_reduce_scatterv() "
    "or (is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather())"
)


class CopiedPredicate(Rule):
    """A second definition of a central predicate has lost a condition that the original has.

    The helper and the questions of the communicator are asked by every model, and each has one right answer. A subclass
    that overrides one, or a second module that defines it again, starts as a copy; then the original gains a reason and
    the copy does not. From then on the answer depends on which of the two a model happens to reach: where the copy
    forgot a reason to skip, the sum runs twice.

    A communicator of its own

        class OwnCommunicator(LayerCommunicator):
            def should_use_reduce_scatter(self, batch):
                return self.allowed and batch.padded

    beside the original

            def should_use_reduce_scatter(self, batch):
                return self.allowed and (should_use_dp_reduce_scatterv() or batch.padded)

    Call `super().should_use_reduce_scatter(batch)` and add to it, or import the original. A definition that answers
    False throughout opts out and is not reported, nor is one that asks the original and adds conditions of its own.
    Reported by default where the lost condition is a reason to skip (a skip predicate, a layer-context flag, an a2a
    backend), in a copy also where a launch option decides it (a group's size). Any other lost condition may be meant,
    and so may an override whose communicator has steps of its own; such a finding has low confidence and is shown only
    when the rule is selected. No fix: what the copy was made for is not in the tree.
    """

    code = "MOE402"
    name = "copied-predicate"
    confidence = Confidence.MEDIUM
    VALID = (
        engine("one-definition", layers=_BASE),
        engine(
            "asks-the-original",
            layers=_BASE,
            models__own=_OWN.format(mark="", value="self.fused or super().should_use_reduce_scatter(batch)"),
        ),
        engine("opts-out", layers=_BASE, models__own=_OWN.format(mark="", value="False")),
        engine(
            "the-same-in-another-order",
            layers=_BASE,
            models__own=_OWN.format(
                mark="", value="(batch.padded or should_use_dp_reduce_scatterv()) and self.allowed"
            ),
        ),
        engine("a-whole-copy", plugin__utils=_COPY.format(mark="", value=_WHOLE)),
    )
    INVALID = (
        engine(
            "override-without-a-reason",
            layers=_BASE,
            models__own=_OWN.format(mark="  # <- MOE402", value="self.allowed and batch.padded"),
        ),
        engine(
            "override-without-a-permission",
            layers=_BASE,
            models__own=_OWN.format(mark="  # <- MOE402", value="should_use_dp_reduce_scatterv() or batch.padded"),
        ),
        engine(
            "copy-of-the-helper",
            plugin__utils=_COPY.format(
                mark="  # <- MOE402", value="should_allreduce_fusion or should_use_dp_reduce_scatterv()"
            ),
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        for pair in (*_overrides(context), *_copies(context)):
            try:
                found = _compared(pair, context)
            except TooManyAtoms:
                continue
            if found is None:
                continue
            lost, difference, broken = found
            central = tuple(name for name in lost if _is_reason(name, pair, context))
            if _has_steps_of_its_own(pair, context):
                central = ()  # what it promises is compared with what it does by MOE401
            line, _ = line_of(pair.original, context)
            name = pair.original.name.rsplit(".", 1)[-1]
            yield at_definition(
                self,
                pair.copy,
                f"this {pair.kind} of `{name}` has lost {named(central or lost)}, which the other definition asks",
                context,
                severity=None if central else Severity.WARNING,
                confidence=None if central else Confidence.LOW,
                witness=_consequence(pair, difference, broken, context),
                remedy=pair.remedy,
                related=(Related(pair.original.path, line, f"the other definition of `{name}`"),),
            )

    def unjudged(self, context: Context) -> Iterable[Problem]:
        return unread((*questions(context), *asked_by_helper(context)), context)


class _Pair(Struct, frozen=True):
    kind: str
    original: Ref
    copy: Ref
    remedy: str


def _overrides(context: Context) -> Iterator[_Pair]:
    """Methods that answer a flag's question anew in a subclass."""
    index = context.index
    for flag in context.policy.profile.flags:
        if not flag.predicate:
            continue
        for ref in defined(flag.predicate, context):
            owner = ref.name.rpartition(".")[0]
            original = index.method(Ref(ref.path, owner), flag.predicate, skip=1) if owner else None
            if original is not None and original != ref:
                yield _Pair("override", original, ref, f"ask `super().{flag.predicate}(…)` and add to it")


def _copies(context: Context) -> Iterator[_Pair]:
    """Further module-level definitions of the helper and of the predicates that it asks."""
    helper = context.policy.helper
    if helper is None or helper.proposed:
        return
    asked = {name.partition("(")[0] for name in atom_set(helper.skips) if is_skip_atom(name, context.policy.profile)}
    for name in sorted({helper.name, *asked}):
        original = context.index.resolve(helper.path, name)
        if original is None:
            continue
        for ref in defined(name, context):
            if ref != original and ref.name == name and not _is_test(ref.path, original.path):
                remedy = f"keep one definition of `{name}` and import it"
                yield _Pair("copy", original, ref, remedy)
                yield _Pair("copy", ref, original, remedy)  # which of the two is the copy, nobody says


def _is_test(path: str, beside: str) -> bool:
    """Whether a file is a test's, as far as its path inside the tree says."""
    root = os.path.commonpath([os.path.dirname(path), os.path.dirname(beside)])
    return any("test" in part for part in PurePath(os.path.relpath(path, root)).parts)


def _compared(pair: _Pair, context: Context) -> tuple[tuple[str, ...], Comparison, Formula] | None:
    """What the copy has lost, how it differs, and when; None where it lost nothing or answers alike."""
    index, policy = context.index, context.policy
    copy, original = index.condition(pair.copy), index.condition(pair.original)
    if copy is None or original is None:
        return None
    copied, first = _aligned(copy), _aligned(original)
    if copied == FALSE or _asks(copied, pair.original):
        return None
    opened, whole = policy.opened(copied), policy.opened(first)
    lost = atom_set(whole) - atom_set(opened)
    difference = compare(opened, negate(whole), kept=atom_set(opened))
    if not lost or difference.relation is Relation.EQUAL:
        return None
    told = tuple(
        name for name in sorted(atom_set(first) - atom_set(copied)) if atom_set(policy.opened(Atom(name))) & lost
    )
    broken = conj((whole, negate(opened)) if difference.under is not None else (opened, negate(whole)))
    return told or tuple(sorted(lost)), difference, broken


def _asks(copied: Formula, original: Ref) -> bool:
    """Whether a definition asks the one that it replaces."""
    called = f"{original.name.rsplit('.', 1)[-1]}("
    return any(name.startswith((called, f"super().{called}")) for name in atom_set(copied))


def _aligned(formula: Formula) -> Formula:
    """The formula with "this step is chosen" named by the step alone: each communicator has a class of its own."""

    def step(atom: str) -> Formula | None:
        match = _CHOSEN.match(atom)
        return Atom(f"{match[2]} is chosen") if match is not None else None

    return substitute(formula, step)


def _is_reason(name: str, pair: _Pair, context: Context) -> bool:
    """Whether a lost condition decides who sums: a reason to skip, or in a copy whatever a launch option decides."""
    profile = context.policy.profile
    getter = profile.backend_getter
    if is_skip_atom(name, profile) or (getter and name.startswith(f"{getter}.")):
        return True
    return pair.kind == "copy" and profile.launch.meaning(name) is not None


def _has_steps_of_its_own(pair: _Pair, context: Context) -> bool:
    """Whether an override is about other steps than the original: `self.step is OwnSteps.scatter`."""
    return bool(_steps(pair.copy, context) - _steps(pair.original, context))


def _steps(ref: Ref, context: Context) -> set[str]:
    condition = context.index.condition(ref)
    names = atom_set(condition) if condition is not None else frozenset()
    return {match[1] for name in names if (match := _CHOSEN.match(name)) is not None}


def _consequence(pair: _Pair, difference: Comparison, broken: Formula, context: Context) -> str | None:
    """A state in which the two answer differently, and what follows."""
    # `over`: the copy says yes where the original says no; `under`: the other way round
    state = difference.under or difference.over
    if state is None:
        return None
    answer = "no, the other yes: the sum runs twice" if difference.under else "yes, the other no: nobody sums"
    when = f"with {named(state.true())} true" if state.true() else "with no condition true"
    found = context.policy.configuration(broken, "TP")
    example = f" (for example {found})" if found is not None else ""
    return f"{when}{example} this {pair.kind} answers {answer}"
