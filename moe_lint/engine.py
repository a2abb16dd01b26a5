"""One run: paths -> files -> index -> policy -> sites -> findings -> `Report`. Reads files, writes none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_lint.baseline import Baseline
from moe_lint.dataflow import Dataflow
from moe_lint.discover import python_file_names, tree_of
from moe_lint.facts import FileFacts, RawSite, is_reduction_name
from moe_lint.ignored import DEFAULT_FILES, FileFilter, is_left_out
from moe_lint.index import ProjectIndex
from moe_lint.law import verdicts
from moe_lint.model import (
    Confidence,
    Finding,
    KnownFinding,
    MatrixRow,
    Problem,
    Report,
    Route,
    SkipReason,
    Span,
    Suppressed,
    UsageError,
    Verdict,
)
from moe_lint.policy import Policy, find_definition, propose_helper, read_helper
from moe_lint.profile import Profile, bundled_profiles, load_profile
from moe_lint.rules import Context, Rule, all_rules
from moe_lint.selection import PathIgnore, chosen_rules, ignored_by_path
from moe_lint.sites import Site, find_site, judge_site, skip_atoms_used
from moe_lint.source import SourceError, decode
from moe_lint.suppress import apply_directives

_IDENTIFIER = re.compile(r"\w+")


@dataclass(frozen=True)
class Options:
    """What to look at and what to look for."""

    paths: tuple[str, ...]
    profile: Profile
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    path_ignores: tuple[PathIgnore, ...] = ()
    files: FileFilter = DEFAULT_FILES
    baseline: Baseline | None = None
    #: whether each row gets a verdict on the law
    law: bool = False


@dataclass(frozen=True)
class Tree:
    """One analysed tree: every file's text that matters, the index, the policy and the judged sites."""

    root: Path
    texts: Mapping[str, str]
    index: ProjectIndex
    policy: Policy
    dataflow: Dataflow
    sites: tuple[Site, ...]
    problems: tuple[Problem, ...]
    files: int


def run(options: Options, overlay: Mapping[str, str] | None = None) -> Report:
    """Judge the paths. ``overlay`` replaces the text of files (by path), to judge a rewrite before it is written."""
    chosen, selected = chosen_rules(options.select, options.extend_select, options.ignore)
    groups = _groups(options.paths, options.files)
    reports = [
        _report(
            analyse(root, options.profile, overlay, explicit, options.files, targets),
            targets,
            chosen,
            selected,
            options.path_ignores,
            options.law,
        )
        for root, (targets, explicit) in groups.items()
    ]
    report = reports[0] if len(reports) == 1 else _joined(reports)
    if options.baseline is None:
        return report
    judged = frozenset(file for targets, _ in groups.values() for file in targets)
    return _against(options.baseline, report, judged, options.paths, frozenset(rule.code for rule in chosen))


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
        sum(r.seen for r in reports),
    )


def _groups(paths: Iterable[str], filter_: FileFilter) -> dict[Path, tuple[set[str], set[str]]]:
    """Tree -> (files to report on, those named one by one). Raises ``UsageError``."""
    groups: dict[Path, tuple[set[str], set[str]]] = {}
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UsageError(f"{name}: no such file or directory")
        if path.is_dir():
            files = list(python_file_names(str(path.resolve()), filter_))
            if not files:
                left_out = any(python_file_names(str(path.resolve()), FileFilter((), gitignore=False)))
                why = " that is not excluded or ignored by git" if left_out else ""
                raise UsageError(f"{name}: no Python file below this folder{why}")
        elif filter_.force and is_left_out(str(path.resolve()), filter_):
            continue
        else:
            files = [str(path.resolve())]
        targets, explicit = groups.setdefault(tree_of(path), (set(), set()))
        targets.update(files)
        if not path.is_dir():
            explicit.update(files)
    return groups


def analyse(
    root: Path,
    profile: Profile,
    overlay: Mapping[str, str] | None = None,
    explicit: Iterable[str] = (),
    files: FileFilter = DEFAULT_FILES,
    targets: Iterable[str] = (),
) -> Tree:
    """Read a tree and judge every site in it.

    ``explicit`` files are parsed whatever they hold. ``targets`` belong to the tree even if ``files`` leaves them out.
    """
    reader = _Reader(profile, overlay or {}, frozenset(explicit))
    paths = list(dict.fromkeys([*python_file_names(str(root), files), *sorted(explicit), *sorted(targets)]))
    texts = {path: text for path in paths if (text := reader.candidate(path)) is not None}
    index = ProjectIndex(texts, paths, reader.facts, profile)
    for path in sorted(explicit):
        named = index.facts(path)
        if named is not None:
            named.parse_all()  # a file that the user names is parsed even if nothing in it is of interest
    dataflow = Dataflow(index)
    found = [
        find_site(path, raw, index, dataflow)
        for path in sorted(texts)
        if reader.may_hold_sites(texts[path])
        for raw in _raw_sites(index, path, reader.call_words)
    ]
    for path in dict.fromkeys(site.path for site in found if site.post_experts):
        judged = index.facts(path)
        if judged is not None:
            judged.parse_all()  # a file that is judged is known to be whole
    helper, helper_problems = read_helper(index)
    used = skip_atoms_used(found, profile)
    if helper is None and not helper_problems and (any(a for _, a in used) or any(f.absorber for f in found)):
        helper = propose_helper(index, used)
    policy = Policy(index, helper, helper_problems)
    sites = tuple(judge_site(site, policy) for site in found)
    return Tree(
        root,
        texts,
        index,
        policy,
        dataflow,
        sites,
        (*reader.problems.values(), *helper_problems, *_no_helper(root, policy, sites), *_site_problems(sites)),
        len(paths),
    )


def _no_helper(root: Path, policy: Policy, sites: Sequence[Site]) -> Iterator[Problem]:
    """Reductions after the experts in a tree in which nothing says who else could sum."""
    open_sites = [site for site in sites if site.post_experts and site.route is not Route.WRAPPER]
    if policy.helper is not None or policy.problems or not open_sites:
        return
    profile = policy.profile
    others = (load_profile(name) for name in bundled_profiles() if name != profile.name)
    fitting = [p.name for p in others if any(find_definition(policy.index, name) is not None for name in p.helpers)]
    hint = f"; did you mean `--profile {fitting[0]}`?" if fitting else ""
    count = f"{len(open_sites)} reduction{'s' if len(open_sites) > 1 else ''} after the experts"
    message = f"no `{profile.helper}` in this tree, and no guard names a skip reason: {count} not judged{hint}"
    yield Problem(SkipReason.NO_HELPER, str(root), 1, message)


class _Reader:
    """Reads and parses files, and keeps what went wrong."""

    def __init__(self, profile: Profile, overlay: Mapping[str, str], explicit: frozenset[str]) -> None:
        self.profile = profile
        self.overlay = overlay
        self.explicit = explicit
        self.problems: dict[str, Problem] = {}
        self._texts: dict[str, str] = {}
        names = [*profile.collectives, *profile.wrappers]
        central = [*profile.helpers, *([f"class {profile.backend_enum}"] if profile.backend_enum else [])]
        plain = [constructor.strip("*") for constructor in profile.absorber_constructors]
        absorbers = [name for name in plain if "*" not in name]
        absorbers += [f"def {name}(" for name in profile.combines]
        self._words = [word.encode() for word in _shortest([*names, *absorbers, *central])]
        #: each of the words, and each other reduction, holds one of these: most files hold none
        self._stems = [stem.encode() for stem in _shortest(["all_reduce", *names, *absorbers, *central])]
        #: what the name of a reduction may hold
        self.call_words = _shortest(["all_reduce", "allreduce", *names])

    @staticmethod
    def may_hold_sites(text: str) -> bool:
        """Whether a file speaks of experts at all; only there can a reduction follow them."""
        return any(word in text for word in ("expert", "moe", "MoE", "Moe", "MOE"))

    def candidate(self, path: str) -> str | None:
        """The text of a file that may matter, else None."""
        if path in self.overlay:
            return self.overlay[path]
        try:
            data = _bytes(path)
        except OSError as error:
            self._fail(path, SkipReason.UNREADABLE, 1, f"cannot be read: {error.strerror or error}")
            return None
        if path not in self.explicit:
            if not _holds(data, self._stems):
                return None
            # a reduction under a name that the profile does not list matters only beside experts
            if not (b"all_reduce" in data and b"expert" in data) and not _holds(data, self._words):
                return None
        try:
            text = self._texts[path] = decode(data)
        except SourceError as error:
            self._fail(path, error.reason, error.line, error.message)
            return None
        return text

    def facts(self, path: str) -> FileFacts | None:
        """The facts of any file of the tree; None, with the reason recorded, when it cannot be parsed."""
        try:
            text = self.overlay.get(path, self._texts.get(path))
            if text is None:
                text = decode(_bytes(path))
            return FileFacts(path, text, self.profile, lambda error: self._refused(path, error))
        except SourceError as error:
            self._refused(path, error)
        except OSError as error:
            self._fail(path, SkipReason.UNREADABLE, 1, f"cannot be read: {error.strerror or error}")
        return None

    def _refused(self, path: str, error: SourceError) -> None:
        self._fail(path, error.reason, error.line, error.message)

    def _fail(self, path: str, reason: SkipReason, line: int, message: str) -> None:
        self.problems.setdefault(path, Problem(reason, path, line, message))


def _bytes(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _holds(data: bytes, words: Iterable[bytes]) -> bool:
    for word in words:  # noqa: SIM110 - asked of every file: a generator costs more than the search
        if word in data:
            return True
    return False


def _shortest(words: Iterable[str]) -> list[str]:
    """The words without those that hold another one: where a long one occurs, the short one does."""
    unique = list(dict.fromkeys(words))
    return [word for word in unique if not any(other != word and other in word for other in unique)]


def _raw_sites(index: ProjectIndex, path: str, words: Iterable[str]) -> list[RawSite]:
    """The reductions of one file, in order."""
    text = index.texts[path].split("\n")
    mentions = {line for word in words for line in index.lines_of(path, word)}
    lines = [line for line in mentions if _names_reduction(text[line - 1], index.profile)]
    facts = index.facts(path) if lines else None
    if facts is None:
        return []
    found = {
        (site.span, site.collective): site for name in facts.functions_at(lines) for site in facts.function(name).sites
    }
    return sorted(found.values(), key=lambda site: site.span)


def _names_reduction(line: str, profile: Profile) -> bool:
    """Whether a line of code holds the whole name of a reduction, not just words like those in one."""
    if line.lstrip().startswith("#"):
        return False
    return any(
        word in profile.collectives or word in profile.wrappers or is_reduction_name(word)
        for word in _IDENTIFIER.findall(line)
    )


def _site_problems(sites: Iterable[Site]) -> list[Problem]:
    texts = {
        SkipReason.UNKNOWN_AXIS: "sums over a group that is neither TP nor EP; not compared with the helper",
        SkipReason.UNKNOWN_ABSORBER: "has no skip condition, and no layer around it was found: right or wrong is open",
        SkipReason.TOO_MANY_ATOMS: "its guard has too many conditions for a truth table; not compared with the helper",
    }
    return [
        Problem(site.problem, site.path, site.raw.span.line, f"`{site.raw.collective}` {texts[site.problem]}", False)
        for site in sites
        if site.problem is not None
    ]


# --- findings


def _report(
    tree: Tree,
    targets: set[str],
    rules: Sequence[Rule],
    selected: frozenset[str],
    path_ignores: Sequence[PathIgnore] = (),
    law: bool = False,
) -> Report:
    context = Context(tree.index, tree.policy, tree.sites)
    raw = {
        finding
        for rule in rules
        for finding in rule.check(context)
        if finding.path in targets and (finding.confidence is not Confidence.LOW or rule.code in selected)
    }
    disagreements = _disagreements(tree, raw)
    raw = {finding for finding in raw if (finding.path, finding.span) not in disagreements}
    findings, suppressed = apply_directives(
        sorted(raw, key=lambda f: f.order),
        {path: text for path, text in tree.texts.items() if path in targets},
        {rule.code: rule.name for rule in all_rules()},
        frozenset(rule.code for rule in rules),
    )
    shown = [site for site in tree.sites if site.path in targets]
    problems = [*disagreements.values()]
    problems += [p for p in tree.problems if p.path in targets or _of_the_tree(p, shown)]
    return Report(
        tuple(_relative(f) for f in findings if not ignored_by_path(f, f.path, path_ignores)),
        _rows(shown, tree.policy, verdicts(tree.sites, tree.policy) if law else {}),
        tuple(replace(p, path=_display(p.path)) for p in problems),
        tuple(Suppressed(_relative(s.finding), s.reason) for s in suppressed),
        _notes(tree, shown),
        tuple(reason.text for reason in tree.policy.reasons("TP")) if tree.policy.helper else (),
        len(targets),
        len(shown),
    )


def _of_the_tree(problem: Problem, shown: Sequence[Site]) -> bool:
    """Whether a problem concerns the sites shown, wherever it is."""
    if problem.reason is SkipReason.NO_HELPER:
        return any(site.post_experts for site in shown)
    return problem.reason is SkipReason.HELPER_NOT_BOOLEAN


def _disagreements(tree: Tree, findings: Iterable[Finding]) -> dict[tuple[str, Span], Problem]:
    """Reported sites whose guard libcst reads differently from `ast`."""
    reported = {(finding.path, finding.span) for finding in findings}
    found: dict[tuple[str, Span], Problem] = {}
    for site in tree.sites:
        key = (site.path, site.raw.span)
        facts = tree.index.facts(site.path) if key in reported else None
        if facts is None:
            continue
        from moe_lint.guard_visitor import read_again, seen_by_ast  # libcst is loaded only when there is a finding

        name = site.raw.function.replace(".<lambda>", "")
        if read_again(site.raw, facts.extent(name), facts.lines) != seen_by_ast(site.raw.guard):
            message = f"`ast` and libcst read the guard of `{site.raw.collective}` differently: please report this"
            found[key] = Problem(SkipReason.DISAGREEMENT, site.path, site.raw.span.line, message)
    return found


def _notes(tree: Tree, shown: Sequence[Site]) -> tuple[str, ...]:
    helper = tree.policy.helper
    if helper is not None and helper.proposed and any(site.post_experts for site in shown):
        reasons = ", ".join(f"`{reason.text}`" for reason in tree.policy.reasons("TP"))
        return (
            f"this tree has no `{helper.name}`; guards are judged against the one that `moe-lint init` would add, "
            f"which skips for {reasons}",
        )
    return ()


def _rows(sites: Sequence[Site], policy: Policy, laws: Mapping[Site, Verdict]) -> tuple[MatrixRow, ...]:
    pairs = _pairs(sites)
    rows = []
    for site in sites:
        reasons = policy.reasons(site.axis) if policy.helper is not None and site.comparison is not None else ()
        rows.append(
            MatrixRow(
                _display(site.path),
                site.raw.span,
                site.raw.class_name,
                site.raw.function.rsplit(".", 1)[-1] if site.raw.class_name is None else _short(site),
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


def _short(site: Site) -> str:
    return site.raw.function.removeprefix(f"{site.raw.class_name}.")


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


def _relative(finding: Finding) -> Finding:
    related = tuple(replace(r, path=_display(r.path)) for r in finding.related)
    return replace(finding, path=_display(finding.path), related=related)


def _display(path: str) -> str:
    """The path as a user would type it: relative to the working directory when it is below it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return path if relative.startswith("..") else relative
