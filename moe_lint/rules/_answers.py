"""Dispatchers that say for themselves whether what they give back is summed, and what they do to give it back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from moe_lint.facts import Call
from moe_lint.formula import FALSE, TRUE, Formula, atom_set
from moe_lint.index import Ref
from moe_lint.rules._central import defined
from moe_lint.rules.base import Context

#: `self.kernel.output_is_reduced()`: a question that the helper leaves to an object, which may do so, too
_LEFT = re.compile(r"(?:^|\.)(\w+)\(\)$")
#: How kernels call what an all-to-all gives back, each token's experts put together.
_COMBINE = re.compile(r"(?:^|_)combine$")
#: How many calls down from a dispatcher's method its kernel is looked for.
_DEPTH = 3


class Answer(Struct, frozen=True):
    """What a dispatcher says of its output (``at`` is its method), and the kernel by which it combines that."""

    owner: Ref
    at: Ref
    summed: bool
    path: str
    kernel: Call


def answers(context: Context) -> Iterator[Answer]:
    """The dispatchers that the helper leaves its question to, answer by a constant, and combine by a kernel."""
    policy = context.policy
    reasons = [reason.formula for reason in policy.reasons("TP")] if policy.helper is not None else []
    for at, said in _answering(reasons, context):
        owner, _, name = at.name.rpartition(".")
        for one in _family(Ref(at.path, owner), context) if owner and said in (TRUE, FALSE) else ():
            kernel = _kernel(one, context) if context.index.method(one, name) == at else None
            if kernel is not None:
                yield Answer(one, at, said == TRUE, *kernel)


def _answering(reasons: Iterable[Formula], context: Context) -> Iterator[tuple[Ref, Formula]]:
    """The methods that formulas leave their questions to, and those that these leave theirs to; with what they say."""
    asked: dict[str, None] = {}
    left = list(reasons)
    for formula in left:
        found = (_LEFT.search(atom) for atom in sorted(atom_set(formula)))
        for name in [one[1] for one in found if one is not None and one[1] not in asked]:
            asked[name] = None
            for at in defined(name, context):
                said = context.index.condition(at)
                if said is not None:
                    left.append(said)
                    yield at, said


def _family(owner: Ref, context: Context) -> list[Ref]:
    """A class and all that derive from it."""
    found = [owner]
    for one in found:
        found += [sub for sub in context.index.subclasses(one) if sub not in found]
    return found


def _kernel(owner: Ref, context: Context) -> tuple[str, Call] | None:
    """The kernel by which a dispatcher gives the experts' output back, with its file."""
    methods = (context.index.method(owner, name) for name in context.index.profile.combines)
    calls = (found for method in methods if method is not None for found in _kernels(owner, method, context, 0))
    return next(calls, None)


def _kernels(owner: Ref, function: Ref, context: Context, depth: int) -> Iterator[tuple[str, Call]]:
    """The kernels that a function calls: by a part of the dispatcher, or from a library.

    A group of ranks has a `combine`, too, and which ranks that sums over is the group's.
    """
    conduct = context.callers.conduct(function)
    for call in conduct.calls if conduct is not None else ():
        holder, _, name = call.callee.rpartition(".")
        inner = context.index.method(owner, name) if holder == "self" else None
        inner = inner or context.index.resolve(function.path, call.callee)
        if inner is not None:
            yield from _kernels(owner, inner, context, depth + 1) if depth < _DEPTH else ()
        elif _COMBINE.search(name) is not None and _is_kernel(holder):
            yield function.path, call


def _is_kernel(holder: str) -> bool:
    return all(part.isidentifier() for part in holder.split(".")) and "group" not in holder.lower()
