"""The helper calls in a site's guard, taken apart."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from msgspec import Struct

from moe_lint.policy import Policy, by_position
from moe_lint.sites import Site


class HelperCall(Struct, frozen=True):
    """One call of the helper: parameter -> source text of the argument; constants also as truth values."""

    arguments: dict[str, str]
    constants: dict[str, bool]


def helper_calls(site: Site, policy: Policy) -> Iterator[HelperCall]:
    """The calls of the helper in a site's guard."""
    for text in policy.helper_calls(site.guard):
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and not any(k.arg is None for k in call.keywords):
            given = dict(by_position(policy.helper, call)) if policy.helper is not None else {}
            given |= {k.arg: k.value for k in call.keywords if k.arg is not None}
            yield HelperCall(
                {name: ast.unparse(value) for name, value in given.items()},
                {
                    name: value.value
                    for name, value in given.items()
                    if isinstance(value, ast.Constant) and isinstance(value.value, bool)
                },
            )


def axis_is_wrong(site: Site, policy: Policy) -> bool:
    """Whether every helper call names the other axis than the reduction that it guards."""
    parameter = policy.helper.axis_parameter if policy.helper is not None else None
    asked = [call.constants.get(parameter or "") for call in helper_calls(site, policy)]
    return bool(asked) and all(axis == (site.axis == "EP") for axis in asked)


def forgotten_flags(site: Site, policy: Policy) -> tuple[str, ...]:
    """Spellings of the flags in scope that no helper call of the guard is given."""
    helper = policy.helper
    if helper is None:
        return ()
    calls = list(helper_calls(site, policy))
    scope = dict(site.flags)
    return tuple(
        scope[flag]
        for parameter, flag in helper.flags
        if calls and flag in scope and not any(parameter in call.arguments for call in calls)
    )


def literal_flags(site: Site, policy: Policy) -> tuple[tuple[str, bool], ...]:
    """(parameter, value) of the flags that a helper call of the guard is given as constants."""
    helper = policy.helper
    if helper is None:
        return ()
    return tuple(
        (parameter, call.constants[parameter])
        for call in helper_calls(site, policy)
        for parameter, flag in helper.flags
        if parameter in call.constants and (call.constants[parameter] or flag in dict(site.flags))
    )
