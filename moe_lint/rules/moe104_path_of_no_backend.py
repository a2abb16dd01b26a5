from __future__ import annotations

from collections.abc import Iterable, Iterator

from moe_lint.facts import Call
from moe_lint.formula import FALSE, Atom, Formula, TooManyAtoms, atom_set, conj, satisfiable
from moe_lint.index import Ref
from moe_lint.model import Finding
from moe_lint.policy import Policy
from moe_lint.rules._cases import ROUTED, case, experts, method
from moe_lint.rules.base import Context, Rule

_CHOICE = """
if not get_moe_a2a_backend().is_deepep() {join} not get_moe_a2a_backend().is_mori():
    return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)
return self.forward_a2a(x){mark}
"""
_NORMAL = experts(ROUTED, "forward_normal")
_A2A = method("x = self.experts(x)", "forward_a2a", "x")


class PathOfNoBackend(Rule):
    """A block has a path for a2a backends that no backend takes.

    One a2a backend is in use at a time. `not is_deepep() or not is_mori()` holds for every one of them, and
    `is_deepep() and is_mori()` for none: an `or` for an `and`, or the other way round, and the path that was written
    for these backends is never taken. They take the path that reduces instead, their combine has summed, and every
    token is scaled by the group size.

    Instead of

        if not backend.is_deepep() or not backend.is_mori():
            return self.forward_normal(x)
        return self.forward_deepep(x)

    write

        if not backend.is_deepep() and not backend.is_mori():
            return self.forward_normal(x)
        return self.forward_deepep(x)

    Reported at the call that is never made, in blocks that reduce. There is no fix.
    """

    code = "MOE104"
    name = "path-of-no-backend"
    VALID = (
        case("and", method(_CHOICE.format(join="and", mark="")), _NORMAL, _A2A),
        case(
            "another-condition-decides",
            method(_CHOICE.format(join="and", mark="").replace("if not", "if self.narrow and not")),
            _NORMAL,
            _A2A,
        ),
        case(
            "taken-elsewhere",
            method("\nif self.wide:\n    return self.forward_a2a(x)" + _CHOICE.format(join="or", mark="")),
            _NORMAL,
            _A2A,
        ),
    )
    INVALID = (
        case("or", method(_CHOICE.format(join="or", mark="  # <- MOE104")), _NORMAL, _A2A),
        case(
            "both-at-once",
            method(
                """
                if get_moe_a2a_backend().is_deepep() and get_moe_a2a_backend().is_mori():
                    return self.forward_a2a(x)  # <- MOE104
                return self.forward_normal(x, should_allreduce_fusion, use_reduce_scatter)
                """
            ),
            _NORMAL,
            _A2A,
        ),
    )

    def check(self, context: Context) -> Iterable[Finding]:
        policy = context.policy
        if not policy.profile.backend_getter:
            return
        owners = {
            Ref(s.path, s.raw.class_name) for s in context.sites if s.post_experts and s.raw.class_name is not None
        }
        for owner in sorted(owners):
            calls: dict[str, list[tuple[str, Call]]] = {}
            for function, call in _own_calls(owner, context):
                calls.setdefault(call.callee, []).append((function, call))
            for callee, made in calls.items():
                if all(_excluded(call, policy) for _, call in made):
                    function, call = made[0]
                    asked = [n for n in sorted(atom_set(call.condition)) if n.startswith(policy.profile.backend_getter)]
                    listed = " and ".join(f"`{name}`" for name in asked)
                    shown = policy.configuration(_one(asked), "TP")
                    yield Finding(
                        self.code,
                        self.name,
                        owner.path,
                        call.span,
                        self.severity,
                        self.confidence,
                        f"no a2a backend takes this path: {listed} exclude one another, so each of these backends "
                        f"takes the path that reduces, and its combine has summed already"
                        f"{f' (for example {shown})' if shown is not None else ''}",
                        function.rpartition(".")[2],
                        owner.name,
                        remedy=f"join the questions so that each of these backends reaches `{callee}`",
                        subject=f"{function} | {callee}",
                    )


def _own_calls(owner: Ref, context: Context) -> Iterator[tuple[str, Call]]:
    """The calls of a class's own methods in it, each with the function that makes it."""
    index = context.index
    facts = index.facts(owner.path)
    if facts is None:
        return
    calls_own = rf"self(?<!\wself)\.(?:{'|'.join(index.method_names(owner)) or '(?!)'})\("
    for name in facts.functions_in(owner.name):
        conduct = context.callers.conduct(Ref(owner.path, name)) if facts.matches(name, calls_own) else None
        for call in conduct.calls if conduct is not None else ():
            if call.callee.startswith("self.") and index.method(owner, call.callee[5:]) is not None:
                yield name, call


def _excluded(call: Call, policy: Policy) -> bool:
    """Whether the backends that a call's condition asks for cannot be in use together."""
    names = atom_set(call.condition)
    feasible = policy.feasible(names)
    try:
        possible = satisfiable(conj((call.condition, feasible)))
    except TooManyAtoms:
        return False
    return call.condition != FALSE and not possible


def _one(asked: list[str]) -> Formula:
    """One of the backends is in use that the block reduces with."""
    return Atom(next((name for name in asked if not name.endswith(".is_none()")), asked[0]))
