"""What an editor shows over a reduction: the witness, and the truth table of its guard beside the helper's."""

from __future__ import annotations

from moe_lint.analysis import Tree
from moe_lint.formula import TooManyAtoms, atom_set, disj, exists, table
from moe_lint.model import Finding, Route
from moe_lint.sites import Site, is_skip_atom

#: With more conditions than this, only the states in which one of them holds are listed.
_FULL = 4


def describe(tree: Tree, findings: tuple[Finding, ...], path: str, line: int, column: int) -> str | None:
    """Markdown about the reduction at a place (columns count characters from 1), None when there is none."""
    for site in tree.sites:
        span = site.raw.span
        if site.path == path and (span.line, span.column) <= (line, column) < (span.end_line, span.end_column):
            parts = [_heading(site), *(_finding(f) for f in findings if f.span == span), truth_table(tree, site)]
            return "\n\n".join(part for part in parts if part)
    return None


def _heading(site: Site) -> str:
    if not site.post_experts:
        return f"`{site.raw.collective}` ({site.axis}) does not sum the output of experts."
    how = {
        Route.HELPER: "asks the central helper",
        Route.WRAPPER: "is a sanctioned wrapper, which asks the helper itself",
        Route.INLINE: "decides by hand when to run",
        Route.DEFERRED: "settles a sum that an earlier block left owed",
        Route.KEPT: "runs where the layer has told its block to leave the sum",
        Route.OWNED: "runs when its caller leaves the sum to it",
        Route.NONE: "runs whatever is absorbed downstream",
    }[site.route]
    relation = f"; compared with the helper it is **{site.relation.value}**" if site.relation is not None else ""
    return f"`{site.raw.collective}` ({site.axis}) sums the experts' output. It {how}{relation}."


def _finding(finding: Finding) -> str:
    lines = [f"**{finding.rule}** {finding.message}"]
    lines += [f"{label}: {text}" for label, text in (("Wrong", finding.witness), ("Help", finding.remedy)) if text]
    return "\n\n".join(lines)


def truth_table(tree: Tree, site: Site) -> str | None:
    """Markdown: in which states the site reduces and in which the helper wants it to; None if they do not compare."""
    policy = tree.policy
    if site.comparison is None or policy.helper is None:
        return None
    skips = disj(reason.formula for reason in policy.reasons(site.axis, site.known_flags))
    reduces = policy.with_helper(site.guard)
    # a condition of another kind does not count against the site
    foreign = {name for name in atom_set(reduces) - atom_set(skips) if not is_skip_atom(name, policy.profile)}
    names = sorted((atom_set(reduces) | atom_set(skips)) - foreign)
    if not names:
        return None
    try:
        site_bits, skip_bits = table(exists(reduces, sorted(foreign)), names), table(skips, names)
    except TooManyAtoms:
        return None
    feasible = table(policy.feasible(names), names)
    states = range(1 << len(names)) if len(names) <= _FULL else [0, *(1 << i for i in range(len(names)))]
    rows = ["| " + " | ".join(f"`{name}`" for name in names) + " | helper | here | |"]
    rows.append("|" + " :-: |" * (len(names) + 3))
    for state in states:
        if not feasible >> state & 1:
            continue
        wanted, runs = not skip_bits >> state & 1, bool(site_bits >> state & 1)
        told = "" if wanted == runs else "summed twice" if runs else "lost"
        cells = ["true" if state >> i & 1 else "" for i in range(len(names))]
        rows.append("| " + " | ".join([*cells, _word(wanted), _word(runs), told]) + " |")
    note = "" if len(names) <= _FULL else f"\n\nOf {1 << len(names)} states, those with at most one condition true."
    return "\n".join(rows) + note


def _word(reduces: bool) -> str:
    return "reduces" if reduces else "skips"
