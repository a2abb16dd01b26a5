"""A judged tree x rules -> `Judgement`: everything that can be told of it, whichever files a run is about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moe_lint.analysis import Tree
from moe_lint.law import verdicts
from moe_lint.model import Confidence, Finding, Judgement, MatrixRow, Problem, Route, SkipReason, Span, Verdict
from moe_lint.policy import Policy
from moe_lint.rules import Context, all_rules
from moe_lint.rules.base import short_name
from moe_lint.selection import chosen_rules
from moe_lint.sites import Site
from moe_lint.suppress import apply_directives


def judge(
    tree: Tree, select: Sequence[str], extend_select: Sequence[str], ignore: Sequence[str], law: bool = False
) -> Judgement:
    """What the chosen rules say of a tree; with ``law``, also whether each site's sum is made exactly once.

    Raises ``UsageError`` for an unknown rule.
    """
    rules, named = chosen_rules(select, extend_select, ignore)
    context = Context(tree.index, tree.policy, tree.sites)
    raw = {
        finding
        for rule in rules
        for finding in rule.check(context)
        if finding.confidence is not Confidence.LOW or rule.code in named
    }
    for path in {finding.path for finding in raw}:
        if (facts := tree.index.facts(path)) is not None:
            facts.parse_all()  # what is reported on is known to be whole: a fix would be judged with all of it
    unjudged = dict.fromkeys(problem for rule in rules for problem in rule.unjudged(context))
    disagreements = _disagreements(tree, raw)
    raw = {finding for finding in raw if (finding.path, finding.span) not in disagreements}
    findings, suppressed = apply_directives(
        sorted(raw, key=lambda f: f.order),
        {path: str(text) for path, text in tree.texts.items() if text.holds("moe-lint")},
        {rule.code: rule.name for rule in all_rules()},
        frozenset(rule.code for rule in rules),
    )
    return Judgement(
        tuple(findings),
        _rows(tree.sites, tree.policy, verdicts(tree.sites, tree.policy) if law else {}),
        (*disagreements.values(), *tree.problems, *unjudged),
        tuple(suppressed),
        _note(tree.policy),
        tuple(reason.text for reason in tree.policy.reasons("TP")) if tree.policy.helper else (),
        tree.index.relevant,
    )


def _disagreements(tree: Tree, findings: Iterable[Finding]) -> dict[tuple[str, Span], Problem]:
    """Reported sites whose guard libcst reads differently from `ast`."""
    reported = {(finding.path, finding.span) for finding in findings}
    found: dict[tuple[str, Span], Problem] = {}
    for site in tree.sites:
        key = (site.path, site.raw.span)
        facts = tree.index.facts(site.path) if key in reported else None
        if facts is None or site.raw.span in facts.confirmed:
            continue
        from moe_lint.guard_visitor import read_again, seen_by_ast  # libcst is loaded only when there is a finding

        name = site.raw.function.replace(".<lambda>", "")
        try:
            agreed = read_again(site.raw, facts.extent(name), facts.lines) == seen_by_ast(site.raw.guard)
        except RecursionError:
            message = f"`{name}` is nested too deeply to be read"
            found[key] = Problem(SkipReason.SYNTAX_ERROR, site.path, site.raw.span.line, message)
            continue
        if agreed:
            facts.confirmed.add(site.raw.span)
        else:
            message = f"`ast` and libcst read the guard of `{site.raw.collective}` differently: please report this"
            found[key] = Problem(SkipReason.DISAGREEMENT, site.path, site.raw.span.line, message)
    return found


def _note(policy: Policy) -> str | None:
    helper = policy.helper
    if helper is None or not helper.proposed:
        return None
    reasons = ", ".join(f"`{reason.text}`" for reason in policy.reasons("TP"))
    return (
        f"this tree has no `{helper.name}`; guards are judged against the one that `moe-lint init` would add, "
        f"which skips for {reasons}"
    )


def _rows(sites: Sequence[Site], policy: Policy, laws: Mapping[Site, Verdict]) -> tuple[MatrixRow, ...]:
    pairs = _pairs(sites)
    rows = []
    for site in sites:
        reasons = policy.reasons(site.axis) if policy.helper is not None and site.comparison is not None else ()
        rows.append(
            MatrixRow(
                site.path,
                site.raw.span,
                site.raw.class_name,
                site.raw.function.rsplit(".", 1)[-1] if site.raw.class_name is None else short_name(site),
                site.raw.collective,
                site.axis,
                site.post_experts,
                site.route.value,
                site.relation.value if site.relation is not None else None,
                tuple((reason.text, reason.text not in site.missing) for reason in reasons),
                site.missing,
                site.absorber,
                " and ".join(
                    f"not ({part.text})" if not part.polarity else part.text
                    for part in site.raw.guard
                    if part.kind != "early-exit"
                ),
                pairs.get((site.path, site.raw.span)),
                laws.get(site),
            )
        )
    return tuple(rows)


def _pairs(sites: Sequence[Site]) -> dict[tuple[str, object], int]:
    """EP/TP pairs (both axes in one function) -> a number."""
    groups: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        if site.post_experts and site.route is not Route.WRAPPER:
            groups.setdefault((site.path, site.raw.function), []).append(site)
    numbers: dict[tuple[str, object], int] = {}
    for group in groups.values():
        if {"TP", "EP"} <= {site.axis for site in group}:
            number = len(set(numbers.values())) + 1
            for site in group:
                numbers[site.path, site.raw.span] = number
    return numbers
