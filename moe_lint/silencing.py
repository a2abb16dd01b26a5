"""`--add-ignores`: a comment with a reason for every finding, so that a tree can adopt moe-lint now and look later."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from moe_lint.engine import Options
from moe_lint.fixing import again
from moe_lint.model import Finding, Report, UsageError
from moe_lint.rewritten import Rewritten
from moe_lint.source import decode
from moe_lint.suppress import Directive, covers, directive_text, read_directives

#: Said where the user gives no reason: a comment must have one.
DEFAULT_REASON = "not looked at yet"


class Silenced(Struct, frozen=True):
    """The files to write, the report after writing them, and the findings that no comment can silence."""

    files: tuple[Rewritten, ...]
    report: Report
    left: tuple[Finding, ...]
    count: int


def require_reason(reason: str) -> None:
    """Raises ``UsageError`` for a reason that could not be read back from a comment."""
    text = f"x = 1  {directive_text(('MOE001',), reason)}\n"
    found = read_directives(text)
    if not reason.strip() or not reason.isprintable() or [d.reason for d in found] != [reason]:
        raise UsageError(f"--reason: {reason!r} cannot stand in a comment behind `ignore[…]`")


def add_ignores(options: Options, report: Report, reason: str) -> Silenced:
    """Comments for all findings of a report but those about comments. Nothing is written."""
    by_path: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if not finding.rule.startswith("MOE9"):
            by_path.setdefault(finding.path, []).append(finding)
    files = []
    for path, findings in by_path.items():
        before = decode(Path(path).read_bytes())
        after = commented(before, findings, reason)
        if after != before and _same_code(before, after):
            files.append(Rewritten(path, before, after))
    texts = {str(Path(one.path).resolve()): one.after for one in files}
    after_report = again(options, report, {})(texts) if texts else report
    left = tuple(finding for finding in after_report.findings if not finding.rule.startswith("MOE9"))
    return Silenced(tuple(files), after_report, left, sum(map(len, by_path.values())) - len(left))


def commented(text: str, findings: Sequence[Finding], reason: str) -> str:
    """The text with a directive for each finding: in one that speaks for its place already, else above or behind it."""
    directives = [directive for directive in read_directives(text) if directive.valid]
    extended: dict[Directive, dict[str, None]] = {}
    added: dict[tuple[int, bool], dict[str, None]] = {}
    lines = text.split("\n")
    closed = _closed_lines(text, lines)
    for finding in findings:
        here = next((d for d in directives if covers(d, finding)), None)
        place = _place(finding, closed) if here is None else None
        if here is not None:
            extended.setdefault(here, dict.fromkeys(here.codes))[finding.rule] = None
        elif place is not None:
            added.setdefault(place, {})[finding.rule] = None
    for directive, codes in extended.items():
        row, start, end = directive.span.line - 1, directive.span.column - 1, directive.span.end_column - 1
        comment = directive_text(tuple(codes), directive.reason or reason)
        lines[row] = lines[row][:start] + comment + lines[row][end:]
    for (number, above), codes in sorted(added.items(), reverse=True):
        line = lines[number - 1]
        ending = "\r" if line.endswith("\r") else ""
        comment = directive_text(tuple(codes), reason)
        if above:
            indent = line[: len(line) - len(line.lstrip())]
            lines.insert(number - 1, f"{indent}{comment}{ending}")
        else:
            lines[number - 1] = f"{line.rstrip()}  {comment}{ending}"
    return "\n".join(lines)


def _place(finding: Finding, closed: tuple[set[int], set[int]]) -> tuple[int, bool] | None:
    """(line, whether above it) where a comment may stand and speaks for a finding; above is what formatters leave."""
    no_line_above, no_comment_behind = closed
    spans = [finding.span, *([finding.guard] if finding.guard is not None else [])]
    for span in spans:
        if span.line not in no_line_above:
            return span.line, True
    for span in spans:
        for line in (span.end_line, span.line):
            if line not in no_comment_behind:
                return line, False
    return None


def _closed_lines(text: str, lines: Sequence[str]) -> tuple[set[int], set[int]]:
    """(lines that can have no comment above them, lines that can have none behind): backslashes and long strings."""
    above: set[int] = set()
    behind: set[int] = set()
    for number, line in enumerate(lines, 1):
        if line.rstrip("\r").endswith("\\"):
            behind.add(number)
            above.add(number + 1)
    opened: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = token.start[0], token.end[0]
        name = tokenize.tok_name[token.type]
        if name.endswith("STRING_START"):
            opened.append(first)
        elif name.endswith("STRING_END") and opened:
            first = opened.pop()
        elif name == "COMMENT":
            behind.add(first)
        elif name != "STRING":
            continue
        above.update(range(first + 1, last + 1))
        behind.update(range(first, last))
    return above, behind


def _same_code(before: str, after: str) -> bool:
    """Whether only comments differ."""
    return ast.dump(ast.parse(before)) == ast.dump(ast.parse(after))
