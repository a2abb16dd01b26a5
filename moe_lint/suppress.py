"""`# moe-lint: ignore[MOE001] reason`: read with `tokenize`, so that prose and strings never suppress."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Mapping, Sequence

from msgspec import Struct

from moe_lint.model import Confidence, Finding, FixPlan, Safety, Severity, Span, Suppressed

UNUSED = "MOE901"
WITHOUT_REASON = "MOE902"
MALFORMED = "MOE903"

_DIRECTIVE = re.compile(r"#\s*moe-lint\s*:\s*(?P<rest>.*)$")
#: Other tools' comments (`type: ignore`, `nosec`, `pragma: no cover` …), before and after a directive on its line.
_PRAGMAS_BEFORE = re.compile(r"(?:#\s*[A-Za-z][\w-]*\s*(?:[:\[(][^#]*)?)+")
_PRAGMA_AFTER = re.compile(r"\s+(?=#\s*[A-Za-z][\w-]*\s*(?:$|[:\[(]))")
_IGNORE = re.compile(r"^ignore\[(?P<codes>[^\]]*)\]\s*(?P<reason>.*)$")


class Directive(Struct, frozen=True):
    """One comment: the codes (or names) it silences, its reason, and where it stands (without its neighbours)."""

    codes: tuple[str, ...]
    reason: str
    span: Span
    #: nothing but comments stands on its line, so it also speaks for the line below
    alone: bool
    valid: bool = True


def directive_text(codes: Sequence[str], reason: str) -> str:
    """The comment that silences rules for a reason."""
    return f"# moe-lint: ignore[{', '.join(codes)}] {reason}".rstrip()


def read_directives(text: str) -> list[Directive]:
    """The directives of a file. A file that cannot be tokenised has none: it is reported as broken elsewhere."""
    if "moe-lint" not in text:
        return []
    found: list[Directive] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            part = _directive_in(token.string) if token.type == tokenize.COMMENT else None
            if part is None:
                continue
            start, comment = part
            (line, column), alone = token.start, not token.line[: token.start[1]].strip()
            span = Span(line, column + start + 1, line, column + start + len(comment) + 1)
            match = _DIRECTIVE.match(comment)
            rest = match["rest"].strip() if match is not None else ""
            ignore = _IGNORE.match(rest)
            codes = tuple(c.strip() for c in ignore["codes"].split(",") if c.strip()) if ignore else ()
            if ignore is None or not codes:
                found.append(Directive((), rest, span, alone, valid=False))
            else:
                found.append(Directive(codes, ignore["reason"].strip(), span, alone))
    except (tokenize.TokenError, SyntaxError):
        return found
    return found


def _directive_in(comment: str) -> tuple[int, str] | None:
    """(offset, text) of the directive in a comment: at its beginning, or behind other tools' comments only."""
    for match in re.finditer(r"(?:^|(?<=\s))#\s*moe-lint\s*:", comment):
        if match.start() and not _PRAGMAS_BEFORE.fullmatch(comment, 0, match.start()):
            continue
        rest = comment[match.start() :]
        after = _PRAGMA_AFTER.search(rest)
        return match.start(), (rest[: after.start()] if after is not None else rest).rstrip()
    return None


def apply_directives(
    findings: Sequence[Finding], texts: Mapping[str, str], known: Mapping[str, str], active: frozenset[str]
) -> tuple[list[Finding], list[Suppressed]]:
    """Split findings into open and silenced ones; add findings about the directives themselves.

    A directive works from the first or last line of the finding's statement, or from the line above it. ``known`` maps
    rule codes to names; an unused directive is reported only if all its rules were ``active`` in this run.
    """
    by_path: dict[str, list[Finding]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    open_findings: list[Finding] = []
    silenced: list[Suppressed] = []
    for path in sorted({*texts, *by_path}):
        directives = read_directives(texts.get(path, ""))
        used: dict[Directive, set[str]] = {}
        for finding in by_path.get(path, ()):
            named = {finding.rule, finding.name}
            match = next((d for d in directives if named & set(d.codes) and covers(d, finding)), None)
            if match is None:
                open_findings.append(finding)
            else:
                used.setdefault(match, set()).update({finding.rule, finding.name})
                silenced.append(Suppressed(finding, match.reason))
        open_findings += _about(path, directives, used, known, active)
    return sorted(open_findings, key=lambda f: f.order), silenced


def covers(directive: Directive, finding: Finding) -> bool:
    """Whether a directive stands where it speaks for a finding, whatever its codes."""
    line = directive.span.line
    spans = [finding.span] + ([finding.guard] if finding.guard is not None else [])
    edges = {edge for span in spans for edge in (span.line, span.end_line)}
    return line in edges or (directive.alone and line + 1 in {span.line for span in spans})


def _about(
    path: str,
    directives: Sequence[Directive],
    used: Mapping[Directive, set[str]],
    known: Mapping[str, str],
    active: frozenset[str],
) -> list[Finding]:
    codes = {**{name: code for code, name in known.items()}, **{code: code for code in known}}
    found: list[Finding] = []

    def add(rule: str, directive: Directive, message: str, fix: FixPlan | None = None) -> None:
        if rule in active:
            found.append(
                Finding(
                    rule,
                    known[rule],
                    path,
                    directive.span,
                    Severity.WARNING,
                    Confidence.HIGH,
                    message,
                    "",
                    None,
                    fix=fix,
                    subject=", ".join(directive.codes) or directive.reason,
                )
            )

    for directive in directives:
        if not directive.valid:
            add(
                MALFORMED,
                directive,
                f"`moe-lint: {directive.reason}` is no directive; write `# moe-lint: ignore[CODE] reason`",
            )
            continue
        unknown = [code for code in directive.codes if code not in codes]
        listed = ", ".join(directive.codes)
        kept = tuple(c for c in directive.codes if c in used.get(directive, ()) or codes.get(c) not in active)
        gone = ", ".join(code for code in directive.codes if code not in kept)
        if unknown:
            add(MALFORMED, directive, f"`ignore[{listed}]` names no rule: {', '.join(unknown)}")
        elif not kept:
            add(UNUSED, directive, f"`ignore[{listed}]` silences nothing here; remove it", _removal(path, directive))
        elif gone:
            message = f"`ignore[{listed}]`: {gone} silences nothing here; remove that code"
            add(UNUSED, directive, message, _removal(path, directive, directive_text(kept, directive.reason)))
        elif not directive.reason:
            add(
                WITHOUT_REASON,
                directive,
                f"`ignore[{listed}]` gives no reason; say why after the bracket",
            )
    return found


def _removal(path: str, directive: Directive, text: str = "") -> FixPlan:
    """The plan that takes a comment away, or puts another in its place."""
    reason = "removes a comment that silences nothing"
    return FixPlan(path, "comment", directive.span, None, True, (), text, (), "", Safety.SAFE, reason)
