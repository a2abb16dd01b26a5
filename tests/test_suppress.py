"""`# moe-lint: ignore[CODE] reason`: what silences a finding, and what is said about the comments themselves."""

from __future__ import annotations

from textwrap import dedent

import pytest

from codemods.edits import apply_edits
from codemods.plans import plan_edits
from moe_lint.model import Confidence, Finding, Safety, Severity, Span, Suppressed
from moe_lint.suppress import Directive, apply_directives, read_directives

KNOWN = {
    "MOE001": "hand-written-guard",
    "MOE002": "unguarded-reduction",
    "MOE901": "unused-suppression",
    "MOE902": "suppression-without-reason",
    "MOE903": "malformed-suppression",
}
ALL = frozenset(KNOWN)


def finding(line: int, end: int | None = None, rule: str = "MOE001", guard: tuple[int, int] | None = None) -> Finding:
    around = Span(guard[0], 1, guard[1], 10) if guard is not None else None
    span = Span(line, 5, end or line, 20)
    return Finding(
        rule, KNOWN[rule], "f.py", span, Severity.ERROR, Confidence.HIGH, "message", "forward", "Block", guard=around
    )


def silence(
    text: str, *findings: Finding, active: frozenset[str] = ALL
) -> tuple[list[tuple[str, int]], list[Suppressed]]:
    """((rule, line) of what stays open, what is silenced)."""
    left, silenced = apply_directives(findings, {"f.py": dedent(text)}, KNOWN, active)
    return [(f.rule, f.span.line) for f in left], silenced


def messages(text: str, *findings: Finding) -> list[str]:
    left, _ = apply_directives(findings, {"f.py": dedent(text)}, KNOWN, ALL)
    return [f.message for f in left if f.rule.startswith("MOE9")]


# --- reading


def test_a_directive_has_codes_a_reason_and_a_place() -> None:
    assert read_directives("x = 1  # moe-lint: ignore[MOE001] summed by the caller\n") == [
        Directive(("MOE001",), "summed by the caller", Span(1, 8, 1, 55), alone=False)
    ]


def test_a_comment_on_its_own_line_is_alone() -> None:
    (found,) = read_directives("if x:\n    # moe-lint: ignore[MOE001] why\n    y()\n")
    assert found.alone
    assert found.span == Span(2, 5, 2, 35)


@pytest.mark.parametrize(
    ("comment", "codes", "reason"),
    [
        ("#moe-lint:ignore[MOE001]why", ("MOE001",), "why"),
        ("#   moe-lint :  ignore[ MOE001 ,MOE002 ]   why not  ", ("MOE001", "MOE002"), "why not"),
        ("# moe-lint: ignore[hand-written-guard] why", ("hand-written-guard",), "why"),
        ("# moe-lint: ignore[MOE001,] why", ("MOE001",), "why"),
        ("# moe-lint: ignore[MOE001]", ("MOE001",), ""),
    ],
)
def test_spacing_is_free(comment: str, codes: tuple[str, ...], reason: str) -> None:
    (found,) = read_directives(f"x = 1  {comment}\n")
    assert (found.codes, found.reason, found.valid) == (codes, reason, True)


@pytest.mark.parametrize(
    "comment",
    [
        "# moe-lint: ignore",
        "# moe-lint: ignore[]",
        "# moe-lint: ignore[,] why",
        "# moe-lint: ignore MOE001",
        "# moe-lint: ignore[MOE001",
        "# moe-lint: disable[MOE001] why",
        "# moe-lint:",
    ],
)
def test_anything_else_after_the_prefix_is_malformed(comment: str) -> None:
    (found,) = read_directives(f"x = 1  {comment}\n")
    assert not found.valid
    assert found.codes == ()


@pytest.mark.parametrize(
    "text",
    [
        "x = '# moe-lint: ignore[MOE001] why'\n",
        "'''\n# moe-lint: ignore[MOE001] why\n'''\n",
        "x = f'''{y}\n# moe-lint: ignore[MOE001] why\n'''\n",
        "# use `# moe-lint: ignore[MOE001] why` to silence it\n",
        "# see moe-lint: ignore[MOE001] why\n",
        "# moe-linter: ignore[MOE001] why\n",
        "x = 1  # noqa\n",
        "",
    ],
)
def test_strings_and_prose_are_no_directives(text: str) -> None:
    assert read_directives(text) == []


def test_every_comment_is_read_in_order() -> None:
    text = "# moe-lint: ignore[MOE001] a\nx = (  # moe-lint: ignore[MOE002] b\n    1,\n)\n"
    assert [(d.codes, d.span.line) for d in read_directives(text)] == [(("MOE001",), 1), (("MOE002",), 2)]


@pytest.mark.parametrize(
    "text", ["# moe-lint: ignore[MOE001] why\nx = (\n", "if x:\n        y\n    z  # moe-lint: x\n"]
)
def test_a_file_that_cannot_be_tokenised_does_not_fail(text: str) -> None:
    read_directives(text)


# --- where it works


def test_a_comment_on_the_line_of_the_statement_silences() -> None:
    left, silenced = silence("x = reduce(x)  # moe-lint: ignore[MOE001] summed above\n", finding(1))
    assert left == []
    assert silenced == [Suppressed(finding(1), "summed above")]


STATEMENT = """\
x = 1
x = reduce(
    x,
    y,
)
x = 2
"""


def commented(line: int, comment: str = "# moe-lint: ignore[MOE001] why") -> str:
    lines = STATEMENT.splitlines()
    lines[line - 1] += f"  {comment}"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("line", [2, 5])
def test_the_first_and_the_last_line_of_the_statement_silence(line: int) -> None:
    left, silenced = silence(commented(line), finding(2, 5))
    assert left == []
    assert len(silenced) == 1


@pytest.mark.parametrize("line", [1, 3, 4, 6])
def test_no_other_line_silences(line: int) -> None:
    left, silenced = silence(commented(line), finding(2, 5))
    assert sorted(left) == sorted([("MOE001", 2), ("MOE901", line)])
    assert silenced == []


def test_a_comment_alone_on_the_line_above_silences() -> None:
    left, silenced = silence("# moe-lint: ignore[MOE001] why\nx = reduce(x)\n", finding(2))
    assert left == []
    assert [s.reason for s in silenced] == ["why"]


def test_a_comment_behind_code_does_not_speak_for_the_line_below() -> None:
    left, _ = silence("y = 1  # moe-lint: ignore[MOE001] why\nx = reduce(x)\n", finding(2))
    assert left == [("MOE901", 1), ("MOE001", 2)]


def test_a_comment_two_lines_above_does_not_silence() -> None:
    left, _ = silence("# moe-lint: ignore[MOE001] why\n\nx = reduce(x)\n", finding(3))
    assert left == [("MOE901", 1), ("MOE001", 3)]


def test_a_comment_alone_below_does_not_silence() -> None:
    left, _ = silence("x = reduce(x)\n# moe-lint: ignore[MOE001] why\n", finding(1))
    assert left == [("MOE001", 1), ("MOE901", 2)]


@pytest.mark.parametrize(
    "text",
    [
        "# moe-lint: ignore[MOE001] why\nif a:\n    x = reduce(x)\n",
        "\nif a:  # moe-lint: ignore[MOE001] why\n    x = reduce(x)\n",
    ],
)
def test_the_guard_of_the_finding_counts_like_the_statement(text: str) -> None:
    left, silenced = silence(text, finding(3, guard=(2, 2)))
    assert left == []
    assert len(silenced) == 1


def test_a_comment_in_another_file_does_not_silence() -> None:
    texts = {"f.py": "x = reduce(x)\n", "g.py": "x = reduce(x)  # moe-lint: ignore[MOE001] why\n"}
    left, silenced = apply_directives([finding(1)], texts, KNOWN, ALL)
    assert [(f.path, f.rule) for f in left] == [("f.py", "MOE001"), ("g.py", "MOE901")]
    assert silenced == []


# --- what it silences


def test_several_codes_silence_several_findings() -> None:
    text = "x = reduce(x)  # moe-lint: ignore[MOE001, MOE002] why\n"
    left, silenced = silence(text, finding(1), finding(1, rule="MOE002"))
    assert left == []
    assert sorted(s.finding.rule for s in silenced) == ["MOE001", "MOE002"]


def test_a_rule_may_be_given_by_name() -> None:
    left, silenced = silence("x = reduce(x)  # moe-lint: ignore[hand-written-guard] why\n", finding(1))
    assert left == []
    assert len(silenced) == 1


def test_another_code_does_not_silence() -> None:
    left, _ = silence("x = reduce(x)  # moe-lint: ignore[MOE002] why\n", finding(1))
    assert sorted(left) == [("MOE001", 1), ("MOE901", 1)]


def test_two_comments_silence_a_finding_each() -> None:
    text = "# moe-lint: ignore[MOE002] b\nx = reduce(x)  # moe-lint: ignore[MOE001] a\n"
    left, silenced = silence(text, finding(2), finding(2, rule="MOE002"))
    assert left == []
    assert {s.finding.rule: s.reason for s in silenced} == {"MOE001": "a", "MOE002": "b"}


# --- what is said about the comments


def test_an_unused_directive_is_a_finding_at_the_comment() -> None:
    left, _ = apply_directives([], {"f.py": "x = 1  # moe-lint: ignore[MOE001] why\n"}, KNOWN, ALL)
    (found,) = left
    assert (found.rule, found.name, found.path) == ("MOE901", "unused-suppression", "f.py")
    assert found.span == Span(1, 8, 1, 38)
    assert found.message == "`ignore[MOE001]` silences nothing here; remove it"


def test_a_directive_for_a_rule_that_did_not_run_is_not_called_unused() -> None:
    text = "x = 1  # moe-lint: ignore[MOE002] why\n"
    assert silence(text, active=ALL - {"MOE002"})[0] == []
    assert silence(text)[0] == [("MOE901", 1)]


def test_a_directive_by_name_for_a_rule_that_did_not_run_is_not_called_unused() -> None:
    assert silence("x = 1  # moe-lint: ignore[hand-written-guard] why\n", active=ALL - {"MOE001"})[0] == []


def test_a_code_that_silences_nothing_beside_one_that_does_is_named() -> None:
    text = "x = reduce(x)  # moe-lint: ignore[MOE001, MOE002] why\n"
    assert messages(text, finding(1)) == ["`ignore[MOE001, MOE002]`: MOE002 silences nothing here; remove that code"]
    assert silence(text, finding(1), active=ALL - {"MOE002"})[0] == []
    assert silence(text, finding(1), finding(1, rule="MOE002"))[0] == []


@pytest.mark.parametrize(
    ("comment", "reason", "columns"),
    [
        ("# noqa: E501  # moe-lint: ignore[MOE001] why", "why", (23, 53)),
        ("# type: ignore[x] # nosec # moe-lint: ignore[MOE001] why", "why", (35, 65)),
        ("# moe-lint: ignore[MOE001] why  # noqa", "why", (9, 39)),
        ("# moe-lint: ignore[MOE001] why # pragma: no cover", "why", (9, 39)),
        ("# moe-lint: ignore[MOE001] see #123 # and more", "see #123 # and more", (9, 55)),
    ],
)
def test_a_directive_stands_beside_other_tools_comments(comment: str, reason: str, columns: tuple[int, int]) -> None:
    (found,) = read_directives(f"x = 1   {comment}\n")
    assert (found.codes, found.reason, found.valid) == (("MOE001",), reason, True)
    assert (found.span.column, found.span.end_column) == columns


def test_a_directive_in_the_midst_of_prose_is_none() -> None:
    assert read_directives("# put this # moe-lint: ignore[MOE001] why behind it\n") == []


# --- taking useless ones away


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("x = 1  # moe-lint: ignore[MOE001] why", "x = 1"),
        ("    # moe-lint: ignore[MOE001] why", None),
        ("x = 1  # noqa: E501  # moe-lint: ignore[MOE001] why", "x = 1  # noqa: E501"),
        ("x = 1  # moe-lint: ignore[MOE001] why  # noqa: E501", "x = 1  # noqa: E501"),
        ("    # moe-lint: ignore[MOE001] why  # noqa", "    # noqa"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", ""])
def test_what_silences_nothing_is_taken_away_and_nothing_else(line: str, left: str | None, newline: str) -> None:
    before, after = f"a = 0{newline or chr(10)}", f"b = 2{newline}" if newline else ""
    text = f"{before}{line}{newline}{after}"
    (found,), _ = apply_directives([], {"f.py": text}, KNOWN, ALL)
    assert found.fix is not None
    assert (found.fix.kind, found.fix.safety) == ("comment", Safety.SAFE)
    edited = apply_edits(text, plan_edits(found.fix, text))
    assert edited == before + ("" if left is None else left + newline) + after


def test_a_code_is_taken_out_of_a_list() -> None:
    text = "x = reduce(x)  # noqa  # moe-lint: ignore[hand-written-guard, MOE002] the caller sums  # nosec\n"
    (found,), _ = apply_directives([finding(1)], {"f.py": text}, KNOWN, ALL)
    assert found.fix is not None
    assert apply_edits(text, plan_edits(found.fix, text)) == text.replace(", MOE002", "")


def test_a_missing_reason_is_a_finding_but_still_silences() -> None:
    text = "x = reduce(x)  # moe-lint: ignore[MOE001]\n"
    left, silenced = silence(text, finding(1))
    assert left == [("MOE902", 1)]
    assert len(silenced) == 1
    assert messages(text, finding(1)) == ["`ignore[MOE001]` gives no reason; say why after the bracket"]


def test_a_malformed_directive_shows_how_to_write_one() -> None:
    text = "x = reduce(x)  # moe-lint: ignore MOE001\n"
    assert silence(text, finding(1))[0] == [("MOE001", 1), ("MOE903", 1)]
    assert messages(text) == [
        "`moe-lint: ignore MOE001` is no directive; write `# moe-lint: ignore[CODE] reason`",
    ]


def test_an_unknown_code_is_named() -> None:
    text = "x = reduce(x)  # moe-lint: ignore[MOE001, MOE777] why\n"
    left, silenced = silence(text, finding(1))
    assert left == [("MOE903", 1)]
    assert len(silenced) == 1
    assert messages(text, finding(1)) == ["`ignore[MOE001, MOE777]` names no rule: MOE777"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("# moe-lint: ignore[MOE001] why\n", "MOE901"),
        ("x = reduce(x)  # moe-lint: ignore[MOE001]\n", "MOE902"),
        ("# moe-lint: nonsense\n", "MOE903"),
    ],
)
def test_the_rules_about_directives_can_be_switched_off(text: str, rule: str) -> None:
    given = [finding(1)] if rule == "MOE902" else []
    assert silence(text, *given)[0] == [(rule, 1)]
    assert silence(text, *given, active=ALL - {rule})[0] == []


def test_open_findings_come_in_order_of_place_and_rule() -> None:
    text = "x = 1\nx = reduce(x)\n# moe-lint: ignore[MOE001] why\n"
    left, _ = silence(text, finding(2, rule="MOE002"), finding(2), finding(1))
    assert left == [("MOE001", 1), ("MOE001", 2), ("MOE002", 2), ("MOE901", 3)]


def test_two_equal_comments_on_different_lines_are_judged_apart() -> None:
    text = "x = reduce(x)  # moe-lint: ignore[MOE001] why\nx = other(x)   # moe-lint: ignore[MOE001] why\n"
    assert silence(text, finding(1))[0] == [("MOE901", 2)]
