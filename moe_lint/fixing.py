"""FixPlans -> new texts, each proved: parsed again, judged again, and stable under a second run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.engine import Options, judged_paths, run
from moe_lint.model import Finding, FixPlan, Patch, Report, Safety, Span, display_path
from moe_lint.rewritten import Rewritten, replacements
from moe_lint.source import can_be_parsed, decode

_Key = tuple[str, str, str, str | None]


class FixResult(Struct, frozen=True):
    """What came of fixing: the files to write, the report after writing them, and what was left alone and why."""

    fixed: tuple[Rewritten, ...]
    report: Report
    #: (path, line, reason) of rewrites that could not be proved or carried out
    not_proven: tuple[tuple[str, int, str], ...]
    held_back: int


#: Which rewrites each choice of the user allows.
ALLOWED: Mapping[str, frozenset[Safety]] = {
    "safe": frozenset({Safety.SAFE}),
    "default": frozenset({Safety.SAFE, Safety.CORRECTIVE}),
    "unsafe": frozenset(Safety),
}


def fix(
    options: Options,
    report: Report,
    allowed: frozenset[Safety],
    wanted: Callable[[FixPlan], bool] = lambda _: True,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> FixResult:
    """Carry out the allowed plans of a report that are ``wanted``, keep those that can be proved, judge the result.

    A comment that silenced what a rewrite repairs goes with it. ``texts`` (by absolute path) stand for files that an
    editor holds.
    """
    stuck = _stuck(options, report, allowed, wanted, texts)
    not_proven = [(path, plan.statement.line, why) for plan, (path, why) in stuck.items()]
    plans, held_back = dict[FixPlan, str](), 0
    for finding in report.findings:
        plan = finding.fix
        if plan is None or plan in stuck:
            continue
        if plan.safety not in allowed or _has_stuck_twin(finding, report, allowed, stuck):
            held_back += 1
        elif wanted(plan):
            plans[plan] = finding.path
    fixes: dict[str, Rewritten] = {}
    for path, here in _by_file(plans).items():
        done = rewrite(path, here, not_proven, texts)
        if done is not None:
            fixes[path] = done
    declined = Counter(_key(f) for f in report.findings if f.fix is not None and f.fix not in plans)
    after = _prove(fixes, report, again(options, report, texts), allowed, declined, not_proven)
    return FixResult(tuple(fixes.values()), after, tuple(sorted(set(not_proven))), held_back)


def _stuck(
    options: Options,
    report: Report,
    allowed: frozenset[Safety],
    wanted: Callable[[FixPlan], bool],
    texts: Mapping[str, str],
) -> dict[FixPlan, tuple[str, str]]:
    """The plans that cannot be carried out as a whole -> (path, why); half of one would be worse than none."""
    candidates = {f.fix: f.path for f in report.findings if f.fix is not None and f.fix.safety in allowed}
    judged = judged_paths(options) if any(plan.parts for plan in candidates) else frozenset()
    found = {}
    for plan, path in candidates.items():
        why = _out_of_reach(plan, judged, texts) if wanted(plan) else None
        if why is not None:
            found[plan] = (path, why)
    return found


def _out_of_reach(plan: FixPlan, judged: Container[str], texts: Mapping[str, str]) -> str | None:
    from codemods.edits import CannotRewrite
    from codemods.plans import plan_edits

    for part in (plan, *plan.parts):
        if plan.parts and part.path not in judged:
            return f"it also needs a change in {display_path(part.path)}, which is not among the files to check"
        try:
            plan_edits(part, _text(part.path, texts))
        except CannotRewrite as error:
            return str(error)
    return None


def _by_file(plans: Mapping[FixPlan, str]) -> dict[str, list[FixPlan]]:
    """The plans and their parts, each with the file that it changes."""
    found: dict[str, dict[FixPlan, None]] = {}
    for plan, path in plans.items():
        found.setdefault(path, {})[plan] = None
        for part in _elsewhere(plan):
            found.setdefault(display_path(part.path), {})[part] = None
    return {path: list(here) for path, here in found.items()}


def _elsewhere(plan: FixPlan) -> list[FixPlan]:
    """The parts of a plan in other files."""
    return [part for part in plan.parts if part.path != plan.path]


def _prove(
    fixes: dict[str, Rewritten],
    report: Report,
    judged_again: Callable[[Mapping[str, str]], Report],
    allowed: frozenset[Safety],
    declined: Counter[_Key],
    not_proven: list[tuple[str, int, str]],
) -> Report:
    """The report on the rewritten files. Those that cannot be proved move from ``fixes`` to ``not_proven``."""
    rounds = 2  # the second is for a comment that became useless with another
    while fixes:
        after = judged_again({str(Path(f.path).resolve()): f.after for f in fixes.values()})
        useless = _useless_comments(after, fixes, declined) if rounds else {}
        if useless:
            fixes.update(useless)
            rounds -= 1
            continue
        unproved = {path: why for path, f in fixes.items() if (why := _unproved(f, report, after, allowed, declined))}
        if not unproved:
            return after
        for path, why in unproved.items():
            for linked in _linked(path, fixes):
                not_proven += [(linked, plan.statement.line, why) for plan in fixes.pop(linked).plans]
    return report


def _linked(path: str, fixes: Mapping[str, Rewritten]) -> list[str]:
    """A rewritten file and those that share a plan with it, directly or not."""
    found, stack = dict[str, None](), [path]
    while stack:
        one = stack.pop()
        if one in found or one not in fixes:
            continue
        found[one] = None
        plans = set(fixes[one].plans)
        stack += [display_path(part.path) for plan in plans for part in _elsewhere(plan)]
        stack += [other for other, fixed in fixes.items() if any(plans & {*_elsewhere(p)} for p in fixed.plans)]
    return list(found)


def again(options: Options, report: Report, texts: Mapping[str, str]) -> Callable[[Mapping[str, str]], Report]:
    """A function that judges rewritten texts as ``report`` was judged.

    What a change touches is told by line numbers of the files as they are, and a rewrite moves lines. So what the
    change did not touch is told apart before, and left out by what stays: rule, file and function.
    """
    if options.changes is None:
        return lambda rewritten: run(options, {**texts, **rewritten})
    whole = replace(options, changes=None)
    untouched = Counter(map(_key, run(whole, texts or None).findings)) - Counter(map(_key, report.findings))

    def judge(rewritten: Mapping[str, str]) -> Report:
        after, left = run(whole, {**texts, **rewritten}), untouched.copy()
        kept = []
        for finding in after.findings:
            if left[_key(finding)]:
                left[_key(finding)] -= 1
            else:
                kept.append(finding)
        return replace(after, findings=tuple(kept))

    return judge


def _useless_comments(after: Report, fixes: Mapping[str, Rewritten], declined: Counter[_Key]) -> dict[str, Rewritten]:
    """The rewritten files that have comments which silence nothing any more, without those comments."""
    from codemods.plans import carry_out

    found: dict[str, Rewritten] = {}
    for path, one in fixes.items():
        plans = [
            f.fix
            for f in after.findings
            if f.path == path and f.fix is not None and f.fix.kind == "comment" and not declined[_key(f)]
        ]
        if plans:
            found[path] = Rewritten(path, one.before, carry_out(one.after, plans), (*one.plans, *plans))
    return found


def patches(options: Options, report: Report, allowed: frozenset[Safety]) -> tuple[Patch, ...]:
    """The allowed plans of a report that can be proved, each as the lines that it alone would change."""
    found = []
    planned = {finding.fix for finding in report.findings}
    for fixed in fix(options, report, allowed).fixed:
        for plan in fixed.plans:
            if plan not in planned or _elsewhere(plan):
                continue  # a part of another plan, or half of one
            alone = rewrite(fixed.path, [plan], [])
            if alone is not None:
                found.append(Patch(plan, replacements(alone.before, alone.after)))
    return tuple(found)


def choices(report: Report, allowed: frozenset[Safety]) -> list[tuple[str, tuple[FixPlan, ...]]]:
    """(path, plans): the allowed plans of a report as a user may take or leave them. A pair stays together."""
    pairs = _pairs(report)
    found: dict[tuple[str, object], dict[FixPlan, None]] = {}
    for finding in report.findings:
        plan = finding.fix
        if plan is None or plan.safety not in allowed or _has_stuck_twin(finding, report, allowed):
            continue
        pair = pairs.get((finding.path, finding.span))
        found.setdefault((finding.path, plan if pair is None else pair), {})[plan] = None
    return [(path, tuple(plans)) for (path, _), plans in found.items()]


def _pairs(report: Report) -> dict[tuple[str, Span], int]:
    return {(row.path, row.span): row.pair for row in report.rows if row.pair is not None}


def _has_stuck_twin(
    finding: Finding, report: Report, allowed: frozenset[Safety], stuck: Container[FixPlan] = ()
) -> bool:
    """Whether the other half of an EP/TP pair has a finding that cannot be fixed: a pair is fixed as a pair."""
    rows = _pairs(report)
    pair = rows.get((finding.path, finding.span))
    if pair is None:
        return False
    fixable = {
        (f.path, f.span)
        for f in report.findings
        if f.fix is not None and f.fix.safety in allowed and f.fix not in stuck
    }
    return any(
        rows.get((other.path, other.span)) == pair
        and other.path == finding.path
        and other.relation is not None
        and (other.path, other.span) not in fixable
        for other in report.findings
    )


def rewrite(
    path: str,
    plans: list[FixPlan],
    not_proven: list[tuple[str, int, str]],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> Rewritten | None:
    """The file with its plans carried out; a plan that cannot be is left out."""
    from codemods.edits import CannotRewrite  # libcst is loaded only when there is something to rewrite
    from codemods.plans import carry_out, plan_edits

    before = _text(path, texts)
    carried: list[FixPlan] = []
    for plan in plans:
        try:
            plan_edits(plan, before)
            carried.append(plan)
        except CannotRewrite as error:
            not_proven.append((path, plan.statement.line, str(error)))
    if not carried:
        return None
    try:
        return Rewritten(path, before, carry_out(before, carried), tuple(carried))
    except (CannotRewrite, SyntaxError) as error:
        not_proven += [(path, plan.statement.line, str(error)) for plan in carried]
        return None


def _text(path: str, texts: Mapping[str, str]) -> str:
    held = texts.get(str(Path(path).resolve()))
    return decode(Path(path).read_bytes()) if held is None else held


def _unproved(
    fixed: Rewritten,
    before: Report,
    after: Report,
    allowed: frozenset[Safety],
    declined: Counter[_Key],
) -> str | None:
    """Why a rewritten file may not be written, None when it may."""
    if not can_be_parsed(fixed.after):
        return "the rewritten file does not parse"
    old, new = _keys(before, fixed.path), _keys(after, fixed.path)
    from moe_lint.rules import all_rules

    following = {rule.code for rule in all_rules() if rule.follows}
    appeared = [key for key in new - old if key[0] not in following]
    if appeared:
        rule, _, function, _ = appeared[0]
        return f"the rewrite would bring up {rule} in `{function}`"
    fixable = (f for f in after.findings if f.path == fixed.path and f.fix is not None and f.fix.safety in allowed)
    left = Counter(_key(f) for f in fixable) - declined
    if left:
        rule, _, _, _ = next(iter(left))
        return f"{rule} would still be reported after the rewrite"
    return None


def _keys(report: Report, path: str) -> Counter[_Key]:
    return Counter(_key(f) for f in report.findings if f.path == path)


def _key(finding: Finding) -> _Key:
    """What a finding is known by while the lines of its file move."""
    return finding.rule, finding.path, finding.function, finding.class_name


def refuted(result: FixResult, why: Mapping[Path, str]) -> tuple[frozenset[FixPlan], list[tuple[str, int, str]]]:
    """(the plans that go with some files for a reason of each, (path, line, reason) of every place that stays)."""
    fixes = {one.path: one for one in result.fixed}
    plans: set[FixPlan] = set()
    places = []
    for path in fixes:
        reason = why.get(Path(path).resolve())
        for name in _linked(path, fixes) if reason is not None else ():
            plans.update(fixes[name].plans)
            places += [(name, plan.statement.line, str(reason)) for plan in fixes[name].plans]
    return frozenset(plans), places
