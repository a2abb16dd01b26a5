"""The ways through a function that has a kernel sum: who has declined, and who has summed, where a tensor is normed."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct, structs

from moe_lint.expressions import dotted
from moe_lint.facts import is_reduction_name
from moe_lint.profile import Profile

#: What leaves a tensor as it is.
_QUESTIONS = ("isinstance", "hasattr", "getattr", "max", "min", "len")
#: More ways than that through one function are not followed.
_WAYS = 500


class Normed(Struct, frozen=True):
    """A norm of the tensor on one way: the kernels that have declined to sum it before, and whether somebody has."""

    call: ast.Call
    declined: frozenset[str]
    summed: bool


class _State(Struct, frozen=True):
    """What is known on the way."""

    holds: tuple[tuple[str, bool], ...] = ()
    #: name -> the kernel whose answer it holds
    answers: tuple[tuple[str, str], ...] = ()
    declined: frozenset[str] = frozenset()
    summed: bool = False


class _TooHard(Exception):
    """A statement that is not followed."""


def normed(function: ast.FunctionDef, tensor: str, profile: Profile) -> list[Normed]:
    """Every norm of a tensor on each way through a function; none where one of its statements is not followed."""
    walker = _Walker(tensor, profile)
    try:
        for _ in walker.run(function.body, _State()):
            pass
    except _TooHard:
        return []
    return walker.found


class _Walker:
    def __init__(self, tensor: str, profile: Profile) -> None:
        self.tensor = tensor
        self.profile = profile
        self.found: list[Normed] = []
        self._steps = 0

    def run(self, body: Sequence[ast.stmt], state: _State) -> Iterator[_State]:
        """The states behind some statements."""
        if not body:
            yield state
            return
        for after in self._step(body[0], state):
            self._steps += 1
            if self._steps > _WAYS:
                raise _TooHard
            yield from self.run(body[1:], after)

    def _step(self, statement: ast.stmt, state: _State) -> Iterator[_State]:
        match statement:
            case ast.If(test=test):
                for value, branch in ((True, statement.body), (False, statement.orelse)):
                    known = self._learn(test, value, state)
                    if known is not None:
                        yield from self.run(branch, known)
            case ast.With():
                yield from self.run(statement.body, state)
            case ast.Return(value=value):
                if value is not None:
                    self._evaluate(value, (), state)
            case ast.Raise():
                return
            case ast.Assign(targets=targets, value=value):
                yield self._evaluate(value, targets, state)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield self._evaluate(value, [target], state)
            case ast.Expr(value=value):
                yield self._evaluate(value, (), state)
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Assert() | ast.AnnAssign():
                yield state
            case _:
                raise _TooHard

    # --- what happens to the tensor

    def _evaluate(self, value: ast.expr, targets: Sequence[ast.expr], state: _State) -> _State:
        for call in (node for node in ast.walk(value) if isinstance(node, ast.Call)):
            given = [argument.value if isinstance(argument, ast.keyword) else argument for argument in _given(call)]
            if not any(isinstance(one, ast.Name) and one.id == self.tensor for one in given):
                continue
            last = (dotted(call.func) or "").rpartition(".")[2]
            kept = targets[0] if call is value and len(targets) == 1 else None
            if isinstance(kept, ast.Name) and kept.id != self.tensor:
                others = tuple(pair for pair in state.answers if pair[0] != kept.id)
                state = structs.replace(state, answers=(*others, (kept.id, dotted(call.func) or "")))
            elif self._sums(last):
                state = structs.replace(state, summed=True)
            elif last == "forward" or self.profile.is_barrier(last):
                if call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == self.tensor:
                    self.found.append(Normed(call, state.declined, state.summed))
                    state = structs.replace(state, summed=True)
            elif last not in _QUESTIONS:
                state = structs.replace(state, summed=True)  # whatever it does
        return state

    def _sums(self, name: str) -> bool:
        profile = self.profile
        return is_reduction_name(name) or name in profile.collectives or name in profile.wrappers

    # --- conditions

    def _learn(self, test: ast.expr, value: bool, state: _State) -> _State | None:
        """What is known where a condition has a value; None where it cannot have it."""
        decided = _decide(test, dict(state.holds))
        if decided is not None:
            return state if decided is value else None
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._learn(test.operand, not value, state)
        if isinstance(test, ast.BoolOp):
            every = isinstance(test.op, ast.And) is value
            open_parts = [part for part in test.values if _decide(part, dict(state.holds)) is None]
            if every or len(open_parts) == 1:
                known: _State | None = state
                for part in open_parts:
                    known = self._learn(part, value, known) if known is not None else None
                return known
        name, positive = _atom(test)
        state = structs.replace(state, holds=(*state.holds, (name, value is positive)))
        return self._answered(name, value is positive, state)

    def _answered(self, name: str, is_none: bool, state: _State) -> _State:
        """A kernel that has answered None has declined; one that has answered has summed."""
        asked = name.removesuffix(" is None").partition("[")[0] if name.endswith(" is None") else ""
        kernel = dict(state.answers).get(asked)
        if kernel is None:
            return state
        if is_none:
            return structs.replace(state, declined=state.declined | {kernel})
        return structs.replace(state, summed=True)


def _given(call: ast.Call) -> Iterable[ast.expr | ast.keyword]:
    return (*call.args, *call.keywords)


def _atom(test: ast.expr) -> tuple[str, bool]:
    """The name of a condition, and whether it is said as it is: `x is not None` is that `x is None` is not so."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Is | ast.IsNot):
        right = test.comparators[0]
        if isinstance(right, ast.Constant) and right.value is None:
            return f"{ast.unparse(test.left)} is None", isinstance(test.ops[0], ast.Is)
    return ast.unparse(test), True


def _decide(test: ast.expr, holds: dict[str, bool]) -> bool | None:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _decide(test.operand, holds)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        parts = [_decide(part, holds) for part in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    name, positive = _atom(test)
    known = holds.get(name)
    return None if known is None else known is positive
