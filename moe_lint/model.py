"""The values that flow through moe-lint. All frozen, none holds a syntax node, all can be encoded."""

from __future__ import annotations

import os
from enum import Enum
from typing import Literal

from msgspec import Struct

Axis = Literal["TP", "EP", "other"]


class UsageError(ValueError):
    """A request that cannot be carried out; the text is one line for the user."""


def one_line(text: str) -> str:
    """The text with its control characters escaped: a name of a file may hold newlines and commands to a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else repr(c)[1:-1] for c in text)


def visible(line: str) -> str:
    """A line of source for a terminal: what controls one is escaped, except tabs."""
    return "\t".join(map(one_line, line.split("\t")))


def display_path(path: str) -> str:
    """The path as a user would type it: relative to the working directory when it is below it."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return path
    return path if relative.split(os.sep, 1)[0] == os.pardir else relative


def counted(count: int, one: str, several: str = "") -> str:
    """`1 finding`, `2 findings`: the number with its noun; ``several`` is the plural that an `s` does not make."""
    return f"{count} {one if count == 1 else several or one + 's'}"


class Span(Struct, frozen=True, order=True, array_like=True):
    """A range of source text. Lines and columns count from 1; columns count characters; the end is exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


class Route(str, Enum):
    """How a site decides whether to reduce."""

    HELPER = "helper"  #: its guard calls the central helper
    WRAPPER = "wrapper"  #: the call is a sanctioned wrapper, which asks the helper itself
    INLINE = "inline"  #: its guard names skip reasons by hand
    DEFERRED = "deferred"  #: it settles a sum that an earlier block marked as owed
    KEPT = "kept"  #: its layer has told the block to leave this sum, in every state in which it runs
    OWNED = "owned"  #: an ownership parameter (`reduce_results`) decides, so the caller does
    NONE = "none"  #: nothing but topology guards it


class Severity(str, Enum):
    """How bad a finding is."""

    ERROR = "error"  #: wrong numbers in some configuration
    WARNING = "warning"  #: right today, drifts tomorrow
    INFO = "info"  #: right as long as nothing around it changes


class Confidence(str, Enum):
    """How sure a rule is that what it finds is wrong."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"  #: off unless selected


class Safety(str, Enum):
    """What a fix does to the behaviour, computed from the relation of old guard and helper."""

    SAFE = "safe"  #: the same function of the state
    CORRECTIVE = "corrective"  #: behaviour changes exactly in the states in which it was wrong
    UNSAFE = "unsafe"  #: could lose a reduction, or cannot be proved


class SkipReason(str, Enum):
    """Why something was not judged. Never silent: each is listed in the report."""

    UNREADABLE = "unreadable"  #: the file cannot be read
    UNDECODABLE = "undecodable"  #: the bytes are not text in the declared encoding
    SYNTAX_ERROR = "syntax-error"  #: neither `ast` nor libcst can parse it
    NO_HELPER = "no-helper"  #: the tree has no helper, and its guards name no skip reason to make one from
    HELPER_NOT_BOOLEAN = "helper-not-boolean"  #: the helper's body is not a boolean function
    PREDICATE_NOT_BOOLEAN = "predicate-not-boolean"  #: a central predicate beside the helper is none either
    TOO_MANY_ATOMS = "too-many-atoms"  #: a guard has more conditions than a truth table is built for
    UNKNOWN_AXIS = "unknown-axis"  #: a post-experts reduction whose group is not known to be TP or EP
    UNKNOWN_ABSORBER = "unknown-absorber"  #: nobody in the tree was seen building this block
    DISAGREEMENT = "front-ends-disagree"  #: `ast` and libcst read a guard differently: a defect of moe-lint


class Problem(Struct, frozen=True):
    """Something that could not be judged, at a place. ``failed`` problems make the exit status 2."""

    reason: SkipReason
    path: str
    line: int
    message: str
    failed: bool = True


class Related(Struct, frozen=True):
    """A second place that explains a finding."""

    path: str
    line: int
    message: str


class FixPlan(Struct, frozen=True):
    """A rewrite, as data: a codemod turns it into edits of one file.

    ``guard`` is the condition to rewrite (None: the statement has none and gets one). In it every operand of the
    top-level ``and`` (``or``, if ``polarity`` is false) whose normalised text is in ``drop`` is replaced by one call
    of ``helper`` with ``arguments``. ``statement`` is the reduction's own statement; for ``kind="comment"`` it is the
    comment, and ``helper`` the text to put in its place, if any; for ``kind="parameters"`` it is the first line of the
    function that gets the ``arguments`` (name, default) as further parameters; for ``kind="settle"`` the statement in
    front of which ``helper`` is to reduce the tensor in ``arguments`` (name, marker) if it is marked.

    ``parts`` are further rewrites, in this file or in others, without which this one must not be made.
    """

    path: str
    kind: Literal["guard", "wrap", "call", "wrapper", "keywords", "parameters", "settle", "comment"]
    statement: Span
    guard: Span | None
    polarity: bool
    drop: tuple[str, ...]
    helper: str
    arguments: tuple[tuple[str, str], ...]
    import_from: str
    safety: Safety
    reason: str
    #: for ``kind="call"``: the call whose arguments are to be replaced; for ``kind="keywords"``: the one that gets the
    #: ``arguments`` as keywords, beside what it has
    call: Span | None = None
    #: for ``kind="wrapper"``: the statements (guards included) that the wrapper's call replaces; for
    #: ``kind="keywords"``: where the first ``arguments`` stand now, positionally; the others are new
    replace: tuple[Span, ...] = ()
    parts: tuple[FixPlan, ...] = ()
    #: calls that only ask: an assignment of what they answer may go once nobody reads it
    harmless: tuple[str, ...] = ()


class Finding(Struct, frozen=True):
    """One verdict of one rule at one place."""

    rule: str
    name: str
    path: str
    span: Span
    severity: Severity
    confidence: Confidence
    message: str
    function: str
    class_name: str | None
    relation: str | None = None
    witness: str | None = None
    #: the condition that decides, when there is one
    guard: Span | None = None
    related: tuple[Related, ...] = ()
    remedy: str | None = None
    fix: FixPlan | None = None
    #: what the finding is about, without positions: the reduction and its normalised guard. For `fingerprint`
    subject: str = ""
    #: why there is no ``fix``, where one was looked for
    unfixable: str | None = None

    @property
    def order(self) -> tuple[str, Span, str, str]:
        """By place, then by rule: how findings are sorted everywhere. A rule may say two things of one place."""
        return (self.path, self.span, self.rule, self.message)

    @property
    def qualname(self) -> str:
        """The function with its class, as Python names it; empty outside of both."""
        return _qualname(self.class_name, self.function)


class Verdict(Struct, frozen=True):
    """Whether the sum at a site runs exactly once in every feasible launch configuration.

    ``configuration`` is one in which it does not (doubled, lost); ``reason`` says who else sums, or why it is open.
    """

    verdict: Literal["once", "doubled", "lost", "undecided"]
    configuration: str | None = None
    reason: str = ""


class MatrixRow(Struct, frozen=True):
    """One all-reduce-like call, as `matrix` shows it."""

    path: str
    span: Span
    class_name: str | None
    function: str
    collective: str
    axis: Axis
    post_experts: bool
    route: str
    relation: str | None
    #: every skip atom of this tree -> whether the guard honours it
    atoms: tuple[tuple[str, bool], ...]
    missing: tuple[str, ...]
    absorber: bool | None
    guard: str
    pair: int | None = None
    #: None: not asked for, or not a reduction after the experts
    law: Verdict | None = None

    @property
    def qualname(self) -> str:
        """The function with its class, as Python names it."""
        return _qualname(self.class_name, self.function)


def _qualname(class_name: str | None, function: str) -> str:
    return ".".join(part for part in (class_name, function) if part)


class Suppressed(Struct, frozen=True):
    """A finding that a comment silences, with the reason given there."""

    finding: Finding
    reason: str


class Replacement(Struct, frozen=True):
    """A range of a text, of whole lines, and what to put there."""

    span: Span
    text: str


class Patch(Struct, frozen=True):
    """What one plan does to its file, proved as `--fix` proves it."""

    plan: FixPlan
    replacements: tuple[Replacement, ...]


class Judgement(Struct, frozen=True):
    """Everything that can be told of one tree under one choice of rules, with absolute paths.

    ``relevant`` are the files that were searched or parsed for it: no other file's content could change it.
    """

    findings: tuple[Finding, ...]
    rows: tuple[MatrixRow, ...]
    problems: tuple[Problem, ...]
    suppressed: tuple[Suppressed, ...]
    #: told to the user when a site after the experts is shown
    note: str | None
    atoms: tuple[str, ...]
    relevant: frozenset[str]


class KnownFinding(Struct, frozen=True):
    """A finding that a baseline lists. ``path`` is relative to the baseline's folder, with ``/``."""

    fingerprint: str
    rule: str
    path: str
    function: str


class Report(Struct, frozen=True):
    """Everything one run found out. ``notes`` are told to the user beside the findings."""

    findings: tuple[Finding, ...]
    rows: tuple[MatrixRow, ...]
    problems: tuple[Problem, ...]
    suppressed: tuple[Suppressed, ...]
    notes: tuple[str, ...]
    atoms: tuple[str, ...]
    files: int
    #: rewrites of the findings; only where an output asked for them
    patches: tuple[Patch, ...] = ()
    #: findings that the baseline lists: not reported, no reason to fail
    known: tuple[Finding, ...] = ()
    #: entries of the baseline that nothing in the judged files answers to any more
    stale: tuple[KnownFinding, ...] = ()

    @property
    def everything(self) -> tuple[Finding, ...]:
        """All findings, the silenced and the known ones too: what fingerprints are counted over."""
        return (*self.findings, *(one.finding for one in self.suppressed), *self.known)

    @property
    def exit_code(self) -> int:
        """2: something could not be judged; 1: findings; 0: neither."""
        if any(problem.failed for problem in self.problems):
            return 2
        return 1 if self.findings else 0
