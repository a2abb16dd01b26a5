"""The rules' documentation: in the terminal, as Markdown, as JSON, and in `docs/rules.md`."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from moe_lint.rules import all_rules
from moe_lint.rules.pages import book, page
from tests.runs import moe_lint

ROOT = Path(__file__).parents[1]


def test_the_committed_page_is_what_the_rules_say() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_rule_is_in_the_table_and_has_a_section_that_the_table_links_to() -> None:
    text = book(all_rules())
    tokens = MarkdownIt().parse(text)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert len(links) == len(all_rules())
    assert set(links) <= anchors


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.code)
def test_a_page_is_prose_and_highlighted_code(rule: object) -> None:
    tokens = MarkdownIt().parse(page(rule))  # type: ignore[arg-type]
    assert [token.content for token in tokens if token.type == "code_block"] == []
    assert len([token for token in tokens if token.type == "paragraph_open"]) >= 3


def test_one_rule_by_code_by_name_and_in_any_case() -> None:
    shown = {moe_lint("rule", name).stdout for name in ("MOE001", "moe001", "hand-written-guard", "Hand-Written-Guard")}
    (text,) = shown
    assert text.startswith("# MOE001 hand-written-guard\n\n*error, confidence high, on by default*\n")
    assert "```python\nif self.tp_size > 1 and not use_reduce_scatter:\n" in text


def test_in_a_terminal_a_page_is_rendered() -> None:
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "moe_lint", "rule", "MOE001"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)
        shown = b""
        try:
            while part := os.read(outer, 4096):
                shown += part
        except OSError:  # the other side is closed
            pass
    os.close(outer)
    text = re.sub(r"\x1b\[[\d;]*m", "", shown.decode())
    assert process.returncode == 0
    assert "MOE001 hand-written-guard" in text
    assert ("# MOE001" in text, "```" in text) == (False, False)
    assert "\x1b[" in shown.decode()


def test_a_rule_that_is_off_says_how_to_turn_it_on() -> None:
    assert "off by default: `--select MOE003` turns it on" in moe_lint("rule", "MOE003").stdout
    assert re.search(r"MOE003  unguarded-without-absorber .*\(off by default\)$", moe_lint("rule").stdout, re.MULTILINE)


def test_all_rules_are_the_committed_page() -> None:
    assert moe_lint("rule", "--all", "--format", "markdown").stdout == (ROOT / "docs/rules.md").read_text()


def test_rules_as_json_for_other_programs() -> None:
    rules = json.loads(moe_lint("rule", "--format", "json").stdout)
    assert [rule["code"] for rule in rules] == [rule.code for rule in all_rules()]
    one = json.loads(moe_lint("rule", "--format", "json", "MOE003").stdout)
    assert (one["name"], one["default"], one["confidence"]) == ("unguarded-without-absorber", False, "low")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["MOE999"], "unknown rule 'MOE999'; did you mean 'MOE9"),
        (["hand-writen-guard"], "did you mean 'hand-written-guard'?"),
        (["zzz"], "unknown rule 'zzz'; `moe-lint rule` lists them"),
        (["--all", "MOE001"], "--all shows every rule; leave out the code"),
    ],
)
def test_a_wrong_request_is_one_line(args: list[str], told: str) -> None:
    result = moe_lint("rule", *args)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr
