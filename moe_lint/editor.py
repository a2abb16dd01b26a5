"""One editor's session: what its open files hold, what is wrong in them, and the edits that repair it. No protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.api import options_of
from moe_lint.config import Settings, read_settings
from moe_lint.engine import Options, run
from moe_lint.fixing import ALLOWED, choices, fix
from moe_lint.model import Finding, FixPlan, Replacement, Report, Safety, UsageError
from moe_lint.rewritten import replacements
from moe_lint.silencing import DEFAULT_REASON, commented
from moe_lint.source import SourceError, decode

if TYPE_CHECKING:
    from moe_lint.analysis import Tree
    from moe_lint.cache import Cache
    from moe_lint.reading import Known


class Repair(Struct, frozen=True):
    """A change that an editor can offer for some findings. ``plans`` is empty for a comment that silences."""

    title: str
    findings: tuple[Finding, ...]
    plans: tuple[FixPlan, ...] = ()
    preferred: bool = False


class Judged(Struct, frozen=True):
    """What was found in one file, and the text that it was found in."""

    options: Options
    report: Report
    text: str


class Editor:
    """Judges the files that an editor holds. ``texts`` are those that differ from the disk, by absolute path."""

    def __init__(self, config: str | None = None, isolated: bool = False, cache: Cache | None = None) -> None:
        self._config = config
        self._isolated = isolated
        self._cache = cache
        self.texts: dict[str, str] = {}
        self._trees: dict[str, Tree] = {}
        self._known: Known = {}

    def hold(self, path: str, text: str) -> None:
        """An open file's text, as the editor shows it."""
        self._trees.clear()
        try:
            same = decode(Path(path).read_bytes()) == text
        except (OSError, SourceError):
            same = False
        if same:
            self.texts.pop(path, None)
        else:
            self.texts[path] = text

    def forget(self, path: str) -> None:
        """A file that was closed: the disk has it again."""
        self._trees.clear()
        self.texts.pop(path, None)

    def judge(self, path: str) -> Judged:
        """Judge one file by the whole of its tree. Raises ``UsageError``."""
        settings: Settings = read_settings((path,), self._config, self._isolated, {})
        options = replace(options_of((path,), settings), cache=self._cache, known=self._known)
        if not Path(path).is_file():
            raise UsageError(f"{path}: not on the disk yet; save it first")
        return Judged(options, run(options, self.texts or None), self._text(path))

    def _text(self, path: str) -> str:
        held = self.texts.get(path)
        try:
            return decode(Path(path).read_bytes()) if held is None else held
        except (OSError, SourceError):
            return ""

    def repairs(self, judged: Judged, first: int, last: int) -> Iterator[Repair]:
        """What can be offered for the findings that touch a range of lines."""
        report = judged.report
        near = tuple(f for f in report.findings if f.span.line <= last and first <= f.span.end_line)
        for _, plans in choices(report, ALLOWED["unsafe"]):
            findings = tuple(finding for finding in report.findings if finding.fix in plans)
            if not set(near) & set(findings):
                continue
            unsafe = any(plan.safety is Safety.UNSAFE for plan in plans)
            reason = " and ".join(dict.fromkeys(plan.reason for plan in plans))
            kind = "unsafe: " if unsafe else ""
            yield Repair(f"moe-lint: {kind}{_action(plans[0])} ({reason})", findings, plans, preferred=not unsafe)
        for finding in near:
            if not finding.rule.startswith("MOE9"):
                yield Repair(f"moe-lint: silence {finding.rule} here with a comment", (finding,))

    def edits(self, judged: Judged, repair: Repair) -> tuple[Replacement, ...]:
        """The proved edits of a repair, in the text that was judged. Raises ``UsageError`` when there are none."""
        if not repair.plans:
            return replacements(judged.text, commented(judged.text, repair.findings, DEFAULT_REASON))
        wanted = frozenset(repair.plans)
        result = fix(judged.options, judged.report, ALLOWED["unsafe"], lambda plan: plan in wanted, self.texts)
        for path, line, reason in result.not_proven:
            raise UsageError(f"{path}:{line}: FIX_NOT_PROVEN: {reason}")
        for one in result.fixed:
            return replacements(one.before, one.after)
        raise UsageError("there is nothing to change any more")

    def hover(self, judged: Judged, path: str, line: int, column: int) -> str | None:
        """Markdown about the reduction at a place (from 1), None when there is none."""
        from moe_lint.hover import describe

        if path not in self._trees:
            self._trees[path] = self._tree(judged.options, path)
        return describe(self._trees[path], judged.report.findings, path, line, column)

    def _tree(self, options: Options, path: str) -> Tree:
        from moe_lint.analysis import analyse
        from moe_lint.discover import python_file_names, tree_of

        root = str(tree_of(Path(path)))
        paths = dict.fromkeys([*python_file_names(root, options.files), path])
        held: Mapping[str, str] = self.texts
        return analyse(root, list(paths), options.profile, held, self._known)


def _action(plan: FixPlan) -> str:
    if plan.kind == "comment":
        return "tidy the comment"
    if plan.kind == "settle":
        return f"settle the sum by `{plan.helper}`"
    return f"use `{plan.helper}`" if plan.helper else "repair the call"
