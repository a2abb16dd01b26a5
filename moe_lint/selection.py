"""Which rules take part, and where: codes, names, prefixes and `ALL` -> rules; patterns of paths -> ignored rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from moe_lint.ignored import Patterns, matches
from moe_lint.model import Finding, UsageError

if TYPE_CHECKING:
    from moe_lint.rules import Rule

_PREFIX = re.compile(r"MOE\d{0,2}$")


class PathIgnore(Struct, frozen=True):
    """Rules that are not reported below some paths. The files stay part of the tree that judges the others."""

    patterns: Patterns
    codes: frozenset[str]


def find_codes(wanted: str) -> tuple[str, ...]:
    """The codes that a code, a name, the beginning of a code, or `ALL` stands for. Raises ``UsageError``."""
    from moe_lint.rules import all_rules  # not needed by a run that the cache answers

    codes = [rule.code for rule in all_rules()]
    upper = wanted.upper()
    if upper in codes:
        return (upper,)
    found = tuple(
        rule.code
        for rule in all_rules()
        if rule.name == wanted or upper == "ALL" or (_PREFIX.match(upper) and rule.code.startswith(upper))
    )
    if not found:
        known = {**{code.lower(): code for code in codes}, **{rule.name: rule.name for rule in all_rules()}}
        from difflib import get_close_matches

        close = get_close_matches(wanted.lower(), known, n=1)
        hint = f"; did you mean {known[close[0]]!r}?" if close else ""
        raise UsageError(f"unknown rule {wanted!r}{hint}; `moe-lint rule` lists them")
    return found


def chosen_rules(
    select: Iterable[str], extend_select: Iterable[str], ignore: Iterable[str]
) -> tuple[list[Rule], frozenset[str]]:
    """(the rules of a run, the codes among them that the user named). Raises ``UsageError``."""
    from moe_lint.rules import all_rules

    selected = {code for wanted in select for code in find_codes(wanted)}
    extended = {code for wanted in extend_select for code in find_codes(wanted)}
    ignored = {code for wanted in ignore for code in find_codes(wanted)}
    basis = selected or {rule.code for rule in all_rules() if rule.on_by_default}
    rules = [rule for rule in all_rules() if rule.code in (basis | extended) - ignored]
    if not rules:  # not a clean tree, but one that nobody looked at
        raise UsageError("no rule is left: every rule that is selected is ignored, too")
    return rules, frozenset(selected | extended)


def ignored_by_path(finding: Finding, path: str, ignores: Sequence[PathIgnore]) -> bool:
    """Whether a finding's rule is ignored at its path (absolute)."""
    return any(finding.rule in one.codes and matches(path, one.patterns) for one in ignores)
