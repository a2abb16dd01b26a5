from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from moe_lint.callers import Bound, Edge, Layer
from moe_lint.formula import TRUE, Atom, Formula, atom_set
from moe_lint.index import ProjectIndex
from moe_lint.model import Finding, FixPlan, Related, Severity
from moe_lint.rules._cases import ASK, ROUTED, SETTLE, block, experts, layer_case, method
from moe_lint.rules._layers import absorbs, call_finding, callee_name, flag_of, launch, runs_in_spite_of
from moe_lint.rules._plumbing import parameter_for, plan_keywords
from moe_lint.rules.base import Context, Rule

_TRUTH = re.compile(r"(?:is|has|should|use|skip|enable|allow|fuse|defer|needs?|do|with|no|can|will)_")
_REVERSED = "x, use_reduce_scatter=False, should_allreduce_fusion=False"
_DENSE = block(
    method(
        """
        if self.tp_size > 1 and not should_allreduce_fusion and not use_reduce_scatter:
            x = tensor_model_parallel_all_reduce(x)
        """
    ),
    name="Dense",
    init="self.size = config",
)


class _Slip(Struct, frozen=True):
    """A positional argument on the wrong parameter: what it is, where it lands, and where it belongs (if anywhere)."""

    bound: Bound
    lands_on: str
    belongs_to: str | None
    carries: str | None


class PositionalFlag(Rule):
    """A positional argument lands on the wrong parameter, and one of the two is a layer-context flag.

    Blocks do not agree on the order of their parameters: one takes `(x, forward_batch, use_reduce_scatter)`, the
    dense block beside it `(x, should_allreduce_fusion, use_reduce_scatter)`. A layer that builds either and passes by
    position hands the batch to `should_allreduce_fusion`. An object is true, so the block never reduces, and no type
    check objects: each rank keeps its own partial sum. A flag that lands on a flag of another meaning, or on something
    else, is as silent.

    Instead of

        hidden_states = self.mlp(hidden_states, forward_batch, use_reduce_scatter)

    pass flags by keyword, and to each block what it takes:

        hidden_states = self.mlp(hidden_states, forward_batch, use_reduce_scatter=use_reduce_scatter)

    Arguments are bound by the parameter order of every class that the attribute may hold, as far as the constructor's
    conditions and `isinstance` tests around the call leave it open.

    Where no number is wrong yet, because the flag is never set for this block or the block skips for the one flag as
    for the other, it is a warning.

    The fix gives the arguments of flags their keyword when every one of them has its parameter; it is corrective.
    """

    code = "MOE202"
    name = "positional-flag"
    VALID = (
        layer_case(
            "order-of-the-callee",
            block(experts(ROUTED, parameters=_REVERSED)),
            layer=ASK + "x = self.mlp(x, use_reduce_scatter, should_allreduce_fusion)" + SETTLE,
        ),
        layer_case(
            "another-name-for-the-flag",
            block(experts(ROUTED, parameters="x, should_allreduce_fusion=False, use_reduce_scatter=False")),
            layer="""
            skip_reduce = batch.defers and not self.last
            x = self.mlp(x, skip_reduce)
            x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
            """,
        ),
        layer_case(
            "each-its-own-call",
            block(experts(ROUTED, parameters="x, batch=None, should_allreduce_fusion=False, use_reduce_scatter=False")),
            _DENSE,
            build="self.mlp = Block(config) if config.is_sparse else Dense(config)",
            layer=ASK
            + """
if isinstance(self.mlp, Block):
    x = self.mlp(x, batch, should_allreduce_fusion, use_reduce_scatter)
else:
    x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)
"""
            + SETTLE,
        ),
        layer_case(
            "branch-that-is-never-built",
            block(experts(ROUTED, parameters="x, batch=None, should_allreduce_fusion=False, use_reduce_scatter=False")),
            _DENSE,
            build="""
            self.is_sparse = True
            if self.is_sparse:
                self.mlp = Block(config)
            else:
                self.mlp = Dense(config)
            """,
            layer=ASK + "x = self.mlp(x, batch, should_allreduce_fusion, use_reduce_scatter)" + SETTLE,
        ),
        layer_case(
            "under-another-name",
            block(experts(ROUTED)),
            block(
                "def forward(self, x, fuse, scatter):\n    return self.inner(x, fuse, scatter)",
                name="Outer",
                init="self.inner = Block(config)",
            ),
            build="self.mlp = Outer(config)",
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)" + SETTLE,
        ),
    )
    INVALID = (
        layer_case(
            "only-where-it-lands-wrong",
            block(
                "def forward(self, x, batch=None, should_allreduce_fusion=False, use_reduce_scatter=False):\n"
                "    return self.routed(x, should_allreduce_fusion, use_reduce_scatter)",
                experts(ROUTED, "routed"),
            ),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)  # <- MOE202" + SETTLE,
        ),
        layer_case(
            "another-order",
            block(experts(ROUTED, parameters=_REVERSED)),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)  # <- MOE202" + SETTLE,
        ),
        layer_case(
            "batch-on-a-flag",
            block(experts(ROUTED, parameters="x, batch=None, use_reduce_scatter=False, should_allreduce_fusion=False")),
            _DENSE,
            build="self.mlp = Block(config) if config.is_sparse else Dense(config)",
            layer=ASK
            + """
x = self.mlp(x, batch, use_reduce_scatter)  # <- MOE202
x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
""",
        ),
        layer_case(
            "flag-on-something-else",
            block(experts(ROUTED, parameters="x, scale=None, should_allreduce_fusion=False, use_reduce_scatter=False")),
            layer=ASK + "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)  # <- MOE202" + SETTLE,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        index = context.index
        told: set[tuple[str, int, int]] = set()
        for layer, _, edge in context.callers.calls:
            key = (edge.frame.path, edge.call.span.line, edge.call.span.column)
            slips = _slips(edge, context)
            if not slips or key in told:
                continue
            told.add(key)
            facts = index.facts(edge.target.path)
            line = facts.header(edge.target.function.name)[0] if facts is not None else 1
            harmless = [_harmless(slip, layer, edge, context) for slip in slips]
            yield call_finding(
                self,
                edge.frame,
                edge.call,
                "; ".join(_told(slip, edge, context, why) for slip, why in zip(slips, harmless, strict=True)),
                severity=Severity.WARNING if all(harmless) else None,
                remedy=_remedy(slips, edge),
                related=(Related(edge.target.path, line, f"`{callee_name(edge)}` takes its parameters in this order"),),
                fix=_plan(slips, edge),
            )


def _slips(edge: Edge, context: Context) -> list[_Slip]:
    """The positional arguments of a call that land wrong."""
    index = context.index
    spellings = index.profile.flag_names
    known = dict(edge.call.known)
    found: list[_Slip] = []
    for bound in edge.bound:
        passed = bound.passed
        if not bound.positional or bound.parameter is None:
            continue
        wanted = spellings.get(bound.parameter)
        if wanted is None and passed.text not in known.values():
            continue
        flags = _flags_in(passed.formula, edge, context) if passed.formula is not None else frozenset()
        carried = next(iter(flags)) if len(flags) == 1 else None
        if wanted is not None and passed.literal is None and wanted not in flags:
            if carried is not None or _is_no_flag(passed.text, edge, context):
                belongs = parameter_for(edge, carried, index) if carried is not None else None
                found.append(_Slip(bound, bound.parameter, belongs, carried))
        elif wanted is None and carried is not None and passed.text == known.get(carried):
            belongs = parameter_for(edge, carried, index)
            if belongs is not None and not _may_take_flags(bound.parameter, edge, index):
                found.append(_Slip(bound, bound.parameter, belongs, carried))
    return found


def _flags_in(formula: Formula, edge: Edge, context: Context) -> frozenset[str]:
    """The flags that a value depends on: by the names that it spells, else by what the caller was handed for these."""
    names = {flag.name for flag in context.index.profile.flags}
    return atom_set(formula) & names or atom_set(context.callers.told(edge.frame, formula)) & names


def _is_no_flag(text: str, edge: Edge, context: Context) -> bool:
    """Whether a name stands for an object, not for a truth value, as far as its name and declaration say.

    What a method of the caller returned may be one: `fuse, scatter = self._asked(batch)`.
    """
    conduct = context.callers.conduct(edge.frame.function)
    truths = conduct.truths if conduct is not None else frozenset()
    if not text.isidentifier() or text in truths or _TRUTH.match(text):
        return False
    facts = context.index.facts(edge.frame.path)
    returned = rf"(?m)^[ \t]*(?:[\w, \t]*,)?[ \t]*{text}[ \t]*(?:,[\w, \t]*)?=[ \t]*self\.\w+\("
    return facts is None or not facts.matches(edge.frame.function.name, returned)


def _may_take_flags(parameter: str, edge: Edge, index: ProjectIndex) -> bool:
    facts = index.facts(edge.target.path)
    return facts is not None and facts.header(edge.target.function.name)[2].get(parameter) is not None


def _harmless(slip: _Slip, layer: Layer, edge: Edge, context: Context) -> str | None:
    """Why a flag that lands wrong makes no difference; None where it does."""
    if slip.carries is None:
        return None
    callers, flag = context.callers, flag_of(context.index.profile, slip.carries)
    if not absorbs(callers, layer, edge, flag):
        return "the flag is never set for this block"
    if slip.lands_on in context.index.profile.flag_names and runs_in_spite_of(callers, edge, flag.name) is None:
        return "the block skips for the one as for the other"
    return None


def _told(slip: _Slip, edge: Edge, context: Context, harmless: str | None) -> str:
    profile = context.index.profile
    landing = (
        f"`{slip.bound.passed.text}` is passed by position and lands on `{slip.lands_on}` of `{callee_name(edge)}`"
    )
    if slip.carries is None:
        return (
            f"{landing}: an object is true, so the block never reduces, nobody was asked to do it instead, and each "
            f"rank keeps its own partial sum{launch(context, TRUE)}"
        )
    if harmless is not None:
        return f"{landing}: no number is wrong yet, but only because {harmless}"
    absorber = flag_of(profile, slip.carries).absorber
    return (
        f"{landing}: where the flag is set the block goes on reducing, and {absorber} sums again, which scales the "
        f"output by the group size{launch(context, Atom(slip.carries))}"
    )


def _remedy(slips: list[_Slip], edge: Edge) -> str:
    named = [f"`{slip.belongs_to}={slip.bound.passed.text}`" for slip in slips if slip.belongs_to is not None]
    if len(named) == len(slips):
        return f"pass {', '.join(named)} by keyword"
    return f"pass flags by keyword, and to `{callee_name(edge)}` only what it takes"


def _plan(slips: list[_Slip], edge: Edge) -> FixPlan | None:
    """Names for every positional flag; None where another argument would be left without its parameter."""
    if any(slip.belongs_to is None for slip in slips):
        return None
    first = min(slip.bound.passed.span for slip in slips)
    later = [b for b in edge.bound if b.positional and b.passed.span >= first]
    slipped = {slip.bound: slip for slip in slips}
    if any(bound not in slipped for bound in later):
        return None
    named = tuple((slipped[b].belongs_to or "", b.passed.text, b.passed.span) for b in later)
    taken = [b.parameter for b in edge.bound if b not in slipped]
    if any(name in taken for name, _, _ in named):
        return None
    return plan_keywords(edge, named, (), "each flag reaches its own parameter")
