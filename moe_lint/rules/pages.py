"""The rules' documentation as Markdown: what `moe-lint rule` shows and what `docs/rules.md` holds."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from itertools import groupby
from textwrap import dedent

from moe_lint.rules.base import Rule

GROUPS = {
    "0": "The guard at a site",
    "1": "Symmetry",
    "2": "From caller to callee",
    "3": "Ownership of the sum",
    "4": "Central predicates",
    "9": "Comments for moe-lint",
}


def page(rule: Rule, level: int = 1) -> str:
    """One rule: heading, how it is reported, prose."""
    default = "on by default" if rule.on_by_default else f"off by default: `--select {rule.code}` turns it on"
    state = f"*{rule.severity.value}, confidence {rule.confidence.value}, {default}*"
    return f"{'#' * level} {rule.code} {rule.name}\n\n{state}\n\n{_fenced(rule.documentation)}\n"


def book(rules: Iterable[Rule]) -> str:
    """All rules: a table for each group, then every rule's page."""
    ordered = sorted(rules, key=lambda rule: rule.code)
    parts = [
        "# Rules\n",
        "`moe-lint rule CODE` shows a page of this in the terminal. `--select` and `--ignore` take codes and names.\n",
    ]
    for digit, group in groupby(ordered, key=lambda rule: rule.code[3]):
        parts.append(f"## {GROUPS.get(digit, 'Others')}\n\n| code | name | |\n|---|---|---|")
        parts += [
            f"| [{rule.code}](#{rule.code.lower()}-{rule.name}) | {rule.name} | {_cell(rule)} |" for rule in group
        ]
        parts.append("")
    parts += [page(rule, 2) for rule in ordered]
    return "\n".join(parts)


def _cell(rule: Rule) -> str:
    off = "" if rule.on_by_default else " *(off by default)*"
    return rule.summary.replace("|", "\\|") + off


def _fenced(text: str) -> str:
    """Prose as it is; indented code between fences, so that it is highlighted."""
    return "\n\n".join(_blocks(text))


def _blocks(text: str) -> Iterator[str]:
    for code, paragraphs in groupby(text.split("\n\n"), key=lambda block: block.startswith("    ")):
        if not code:
            yield from paragraphs
            continue
        lines = dedent("\n\n".join(paragraphs))
        yield f"```{'python' if _is_python(lines) else ''}\n{lines}\n```"


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
