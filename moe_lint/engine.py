"""One run: paths -> trees -> judgements (made, or from the cache) -> `Report`. Imports what judges only to judge."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.discover import python_file_names, tree_of
from moe_lint.ignored import DEFAULT_FILES, FileFilter, is_left_out
from moe_lint.model import (
    Finding,
    Judgement,
    KnownFinding,
    MatrixRow,
    Problem,
    Report,
    SkipReason,
    Suppressed,
    UsageError,
    display_path,
)

if TYPE_CHECKING:
    from moe_lint.analysis import Tree
    from moe_lint.baseline import Baseline
    from moe_lint.cache import Cache
    from moe_lint.changes import Changes
    from moe_lint.kept import Unchanged
    from moe_lint.profile import Profile
    from moe_lint.reading import Known
    from moe_lint.selection import PathIgnore


class Options(Struct, frozen=True):
    """What to look at, what to look for, and what is kept of it.

    ``cache``: where judgements are (nowhere: every run judges anew). ``known``: what is known of files already, for who
    judges one tree several times.
    """

    paths: tuple[str, ...]
    profile: Profile
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    path_ignores: tuple[PathIgnore, ...] = ()
    files: FileFilter = DEFAULT_FILES
    baseline: Baseline | None = None
    changes: Changes | None = None
    #: whether each row gets a verdict on the law
    law: bool = False
    cache: Cache | None = None
    known: Known | None = None


def run(options: Options, overlay: Mapping[str, str] | None = None) -> Report:
    """Judge the paths. ``overlay`` replaces the text of files (by path), to judge a rewrite before it is written.

    Raises ``UsageError``.
    """
    reports = []
    trees: dict[str, list[str]] = {}
    walk = _Walk(options.files)
    groups = _groups(options.paths, options.files, walk)
    for root, (targets, named) in groups.items():
        paths = list(dict.fromkeys([*walk(str(root)), *sorted(targets)]))
        trees[str(root)] = paths
        judgement = _judgement_of(str(root), paths, options, overlay)
        problems = _problems_of_named(named, judgement, overlay or {}) if named else []
        reports.append(_report(judgement, targets, problems, options.path_ignores))
    report = reports[0] if len(reports) == 1 else _joined(reports)
    if options.baseline is not None:
        from moe_lint.selection import chosen_rules

        rules, _ = chosen_rules(options.select, options.extend_select, options.ignore)
        judged = frozenset(file for targets, _ in groups.values() for file in targets)
        report = _against(options.baseline, report, judged, options.paths, frozenset(rule.code for rule in rules))
    if options.changes is not None:
        report = _only_touched(report, trees, options, overlay)
    return report


def _only_touched(
    report: Report, trees: Mapping[str, Sequence[str]], options: Options, overlay: Mapping[str, str] | None
) -> Report:
    """The report without what rests on nothing that has changed. What could not be judged stays."""
    from moe_lint.analysis import analyse
    from moe_lint.touched import Touch

    changes = options.changes
    assert changes is not None
    told = (*report.findings, *(silenced.finding for silenced in report.suppressed))
    answers = [
        (frozenset(paths), Touch(analyse(root, paths, options.profile, overlay, options.known), changes))
        for root, paths in trees.items()
        if told and changes.files
    ]

    def touched(finding: Finding) -> bool:
        path = os.path.realpath(finding.path)
        related = tuple(replace(r, path=os.path.realpath(r.path)) for r in finding.related)
        absolute = replace(finding, path=path, related=related)
        return any(path in paths and touch.touches(absolute) for paths, touch in answers)

    return replace(
        report,
        findings=tuple(finding for finding in report.findings if touched(finding)),
        suppressed=tuple(one for one in report.suppressed if touched(one.finding)),
        problems=tuple(p for p in report.problems if p.failed or os.path.realpath(p.path) in changes.files),
    )


def _judgement_of(root: str, paths: Sequence[str], options: Options, overlay: Mapping[str, str] | None) -> Judgement:
    """What can be told of a tree: from the cache, if nothing changed."""
    cache = options.cache
    if cache is None:
        return _judged(root, paths, options, overlay, None)[0]
    from moe_lint.cache import key_of
    from moe_lint.kept import FileChanged
    from moe_lint.prefilter import Prefilter

    key = key_of(root, options.profile, options.select, options.extend_select, options.ignore, options.law)
    found = cache.load(key, paths, Prefilter(options.profile))
    if found.judgement is not None and overlay is None:
        return found.judgement
    key_of_files = key_of(root, options.profile)
    unchanged = cache.unchanged(key_of_files, found)
    try:
        judgement, tree = _judged(root, paths, options, overlay, unchanged)
    except FileChanged:
        judgement, tree = _judged(root, paths, options, overlay, None)
    if overlay is None and not any(problem.reason is SkipReason.UNREADABLE for problem in judgement.problems):
        cache.store(
            (key, key_of_files), paths, found.stamps, judgement, tree.reader.found(), tree.policy.configurations
        )
    return judgement


def _judged(
    root: str,
    paths: Sequence[str],
    options: Options,
    overlay: Mapping[str, str] | None,
    unchanged: Unchanged | None,
) -> tuple[Judgement, Tree]:
    # loaded only when there is something to judge: a run that the cache answers is over before these are imported
    from moe_lint.analysis import analyse
    from moe_lint.judging import judge

    tree = analyse(root, paths, options.profile, overlay, options.known, unchanged)
    return judge(tree, options.select, options.extend_select, options.ignore, options.law), tree


def _problems_of_named(named: Iterable[str], judgement: Judgement, overlay: Mapping[str, str]) -> list[Problem]:
    """What is wrong with the files that the user names: they are parsed even if nothing in them is of interest."""
    from moe_lint.prefilter import read_bytes
    from moe_lint.source import SourceError, decode, parse, problem_of

    known = {problem.path for problem in judgement.problems if problem.failed}
    found: list[Problem] = []
    for path in sorted(named):
        if path not in known:
            try:
                parse(overlay[path] if path in overlay else decode(read_bytes(path)))
            except (OSError, SourceError) as error:
                found.append(problem_of(path, error))
    return found


def _report(
    judgement: Judgement, targets: set[str], more: Iterable[Problem], path_ignores: Sequence[PathIgnore]
) -> Report:
    """What a judgement says of some files, with paths as a user would type them."""
    findings = [f for f in judgement.findings if f.path in targets]
    if path_ignores:
        from moe_lint.selection import ignored_by_path

        findings = [f for f in findings if not ignored_by_path(f, f.path, path_ignores)]
    rows = tuple(row for row in judgement.rows if row.path in targets)
    problems = [p for p in judgement.problems if p.path in targets or _of_the_tree(p, rows)]
    note = judgement.note if any(row.post_experts for row in rows) else None
    return Report(
        tuple(_relative(f) for f in findings),
        tuple(replace(row, path=display_path(row.path)) for row in rows),
        tuple(replace(p, path=display_path(p.path)) for p in (*problems, *more)),
        tuple(Suppressed(_relative(s.finding), s.reason) for s in judgement.suppressed if s.finding.path in targets),
        (note,) if note is not None else (),
        judgement.atoms,
        len(targets),
    )


def _against(
    baseline: Baseline, report: Report, judged: frozenset[str], paths: Iterable[str], active: frozenset[str]
) -> Report:
    """The report without the findings that a baseline lists, and with the entries that are stale."""
    folders = tuple(os.path.join(os.path.realpath(path), "") for path in paths)
    failed = {os.path.realpath(problem.path) for problem in report.problems if problem.failed}

    def was_judged(entry: KnownFinding) -> bool:
        path = os.path.realpath(baseline.path(entry))
        gone = path.startswith(folders) and not os.path.exists(path)
        return entry.rule in active and path not in failed and (path in judged or gone)

    new, known, stale = baseline.split(report.findings, (s.finding for s in report.suppressed), was_judged)
    told = (
        f"stale baseline entry: {entry.rule} in {entry.path}"
        f"{f' (`{entry.function}`)' if entry.function else ''} is gone; write the baseline again with --write-baseline"
        for entry in stale
    )
    return replace(report, findings=new, known=known, stale=stale, notes=(*report.notes, *told))


def _joined(reports: Sequence[Report]) -> Report:
    return Report(
        tuple(f for r in reports for f in r.findings),
        tuple(row for r in reports for row in r.rows),
        tuple(dict.fromkeys(p for r in reports for p in r.problems)),
        tuple(s for r in reports for s in r.suppressed),
        tuple(dict.fromkeys(n for r in reports for n in r.notes)),
        tuple(dict.fromkeys(a for r in reports for a in r.atoms)),
        sum(r.files for r in reports),
    )


class _Walk:
    """The Python files below a folder; each folder is walked once."""

    def __init__(self, files: FileFilter) -> None:
        self._files = files
        self._found: dict[str, list[str]] = {}

    def __call__(self, folder: str) -> list[str]:
        if folder not in self._found:
            self._found[folder] = list(python_file_names(folder, self._files))
        return self._found[folder]


def judged_paths(options: Options) -> frozenset[str]:
    """The files that a run reports on."""
    groups = _groups(options.paths, options.files, _Walk(options.files))
    return frozenset(file for targets, _ in groups.values() for file in targets)


def _groups(paths: Iterable[str], filter_: FileFilter, walk: _Walk) -> dict[Path, tuple[set[str], set[str]]]:
    """Tree -> (files to report on, those named one by one). Raises ``UsageError``."""
    groups: dict[Path, tuple[set[str], set[str]]] = {}
    for name in paths:
        path = Path(name)
        if not name or not path.exists():  # to Path, no name at all is the working directory
            raise UsageError(f"{name or repr(name)}: no such file or directory")
        if path.is_dir():
            files = walk(str(path.resolve()))
            if not files:
                left_out = any(python_file_names(str(path.resolve()), FileFilter((), gitignore=False)))
                why = " that is not excluded or ignored by git" if left_out else ""
                raise UsageError(f"{name}: no Python file below this folder{why}")
        elif filter_.force and is_left_out(str(path.resolve()), filter_):
            continue
        elif not path.is_file():
            raise UsageError(f"{name}: neither a file nor a folder")
        else:
            files = [str(path.resolve())]
        targets, explicit = groups.setdefault(tree_of(path), (set(), set()))
        targets.update(files)
        if not path.is_dir():
            explicit.update(files)
    return groups


def _of_the_tree(problem: Problem, shown: Iterable[MatrixRow]) -> bool:
    """Whether a problem concerns the sites shown, wherever it is."""
    if problem.reason is SkipReason.NO_HELPER:
        return any(row.post_experts for row in shown)
    return problem.reason is SkipReason.HELPER_NOT_BOOLEAN


def _relative(finding: Finding) -> Finding:
    related = tuple(replace(r, path=display_path(r.path)) for r in finding.related)
    return replace(finding, path=display_path(finding.path), related=related)
