"""What a file says, as frozen values without syntax nodes."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from moe_lint.formula import Formula
from moe_lint.model import Axis, Span

# --- operands -------------------------------------------------------------------------------------------------------


class Experts(Struct, frozen=True, tag=True, array_like=True):
    """The value comes out of the experts themselves."""

    via: str


class Param(Struct, frozen=True, tag=True, array_like=True):
    """The value is what the caller passed for this parameter."""

    name: str


class CallResult(Struct, frozen=True, tag=True, array_like=True):
    """The value is (element ``element`` of) what ``callee`` returned, given values of the origins ``inputs``."""

    callee: str
    element: int | None
    inputs: frozenset[Origin]
    #: the callee's own name says that it is the experts
    named_experts: bool


class Summed(Struct, frozen=True, tag=True, array_like=True):
    """The value went through the reduction at ``span``, on some way. Only `paths` tells of it."""

    span: Span


class Marked(Struct, frozen=True, tag=True, array_like=True):
    """The value is the tensor that was marked at ``span`` as owing a sum, on some way. Only `paths` tells of it."""

    span: Span


Origin = Experts | Param | CallResult | Summed | Marked
Origins = frozenset[Origin]
NOTHING: Origins = frozenset()


def element_of(origins: Origins, element: int | None) -> Origins:
    """Element ``element`` of a value that was bound whole: `out = f(x); a, b = out`."""
    if element is None:
        return origins
    return frozenset(
        CallResult(o.callee, element, o.inputs, o.named_experts)
        if isinstance(o, CallResult) and o.element is None
        else o
        for o in origins
    )


# --- facts ----------------------------------------------------------------------------------------------------------


class GuardPart(Struct, frozen=True, array_like=True):
    """One condition that controls a site. ``formula`` is what must hold for the site to be reached."""

    text: str
    polarity: bool
    kind: str  # if, else, early-exit, ternary, and, or, while
    span: Span
    formula: Formula
    #: the operands of the top-level `and` (`or`, where the condition must be false): text, and what must hold
    operands: tuple[tuple[str, Formula], ...] = ()
    #: `operands` are joined by `and` (each must hold), else by `or` (none may)
    positive: bool = True
    #: where the operands stand when that is not the whole condition: inside a `not (…)`, or in the value of a local
    #: that only this test reads
    carrier: Span | None = None
    #: the whole `if` statement
    statement: Span | None = None
    #: the condition alone decides; not so where only some paths through an `if` above leave the function
    plain: bool = True


class RawSite(Struct, frozen=True, array_like=True):
    """One all-reduce-like call as its own file shows it."""

    span: Span
    callee: str
    collective: str
    axis: Axis
    function: str
    class_name: str | None
    guard: tuple[GuardPart, ...]
    origins: Origins
    #: spelling of each layer-context flag that is a parameter or a local here
    flags: tuple[str, ...]
    statement: Span
    #: how the call stands in its statement: assign (`x = f(x)`), return, consumed (by a norm, on the spot) or other
    shape: str
    operand: str
    target: str | None
    #: the function that gives the group which the call is made on: `get_moe_tp_group().all_reduce(x)`
    group: str | None = None


class Argument(Struct, frozen=True, array_like=True):
    """One argument of a call: its keyword (None: positional), text, formula (for conditions) and origins."""

    keyword: str | None
    text: str
    literal: bool | None
    origins: Origins


class CallFact(Struct, frozen=True, array_like=True):
    """A call that hands on a tensor that may come from the experts, or a layer-context flag."""

    callee: str
    span: Span
    function: str
    class_name: str | None
    arguments: tuple[Argument, ...]


class ScatterFact(Struct, frozen=True, array_like=True):
    """A call that sums and scatters in one (`reduce_scatterv`), and the condition under which it runs."""

    callee: str
    span: Span
    condition: Formula


class Exit(Struct, frozen=True, array_like=True):
    """A `return`: the origins of its elements (one, or those of a tuple), and what must hold for it to be reached."""

    span: Span
    elements: tuple[Origins, ...]
    condition: Formula


class Paths(Struct, frozen=True, array_like=True):
    """The ways out of a function. Their origins, and those of what is reduced on them, tell of reductions before."""

    exits: tuple[Exit, ...]
    #: (reduction, what it sums)
    summed: tuple[tuple[Span, Origins], ...]
    #: (mark of a tensor as owing a sum, when it is made)
    marks: tuple[tuple[Span, Formula], ...]


class AttributeFact(Struct, frozen=True, array_like=True):
    """One assignment to ``self.name``: which constructors its value calls, and under which condition."""

    name: str
    callees: tuple[str, ...]
    alias: str | None
    condition: Formula
    function: str


class BackendTest(Struct, frozen=True, array_like=True):
    """A disjunction of a2a backend questions, `get_moe_a2a_backend().is_x() or …`, that was written out by hand."""

    members: frozenset[str]
    span: Span
    function: str
    class_name: str | None
    #: methods of the same class that are called in the statement
    chooses: frozenset[str]
    #: the statement leaves the function, so it decides about everything below it
    leaves: bool


class FunctionFacts(Struct, frozen=True, array_like=True):
    """What the body of one function (with the functions inside it left out) does."""

    name: str
    qualname: str
    class_name: str | None
    line: int
    params: tuple[str, ...]
    #: parameters that have a default -> the default when it is a truth value, else None
    defaults: Mapping[str, bool | None]
    #: per return statement, the origins of its elements (one, or those of a tuple)
    returns: tuple[tuple[Origins, ...], ...]
    sites: tuple[RawSite, ...]
    calls: tuple[CallFact, ...]
    attributes: tuple[AttributeFact, ...]
    #: every constructor-like callee
    builds: tuple[str, ...]
    backend_tests: tuple[BackendTest, ...]
    scatters: tuple[ScatterFact, ...] = ()

    @classmethod
    def unread(cls, qualname: str, class_name: str | None, line: int) -> FunctionFacts:
        """A function whose body could not be read (the reason is reported)."""
        return cls(qualname.rpartition(".")[2], qualname, class_name, line, (), {}, (), (), (), (), (), (), ())


class ClassFacts(Struct, frozen=True, array_like=True):
    """A class as its header and its method names show it."""

    name: str
    line: int
    bases: tuple[str, ...]
    methods: frozenset[str]
    properties: frozenset[str]
