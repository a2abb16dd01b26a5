"""A text and what was looked for in it: the answers are those of a plain search, kept or not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import MsgspecError

from moe_lint.text import Text

CODE = """\
from a import (one,  # two
    three)
import b.four as five

class Block(Base, metaclass=Meta):
    class_name = "important"

def f(): from c import six

made = Block()
"""


@given(st.text("ab_ \n"), st.sampled_from(["a", "ab", "_", "b_", "aa"]))
def test_lines_are_found_as_by_a_search_line_by_line(text: str, word: str) -> None:
    lines = text.split("\n")
    found = Text(text)
    assert found.holds(word) == (word in text)
    assert found.lines_of(word) == [n for n, line in enumerate(lines, 1) for _ in range(line.count(word))]
    whole = re.compile(rf"(?<!\w){word}(?!\w)")
    assert found.lines_of(word, whole=True) == [n for n, line in enumerate(lines, 1) for _ in whole.findall(line)]


def test_words_in_statements_are_told_without_parsing() -> None:
    text = Text(CODE)
    assert {"one", "three", "b", "four", "five", "six"} <= set(text.words_in("import"))
    assert "Block" not in text.words_in("import")
    assert set(text.words_in("class")) == {"class", "Block", "Base", "metaclass", "Meta"}


def test_answers_can_be_kept() -> None:
    first = Text(CODE)
    answers = (first.holds("Block"), first.holds("nothing"), first.lines_of("Block", whole=True), first.lines_of("a"))
    words = first.words_in("import")
    assert first.lines_that("hold a colon", lambda: iter([5, 8])) == [5, 8]
    again = Text("another text", first.kept())
    assert (again.holds("Block"), again.holds("nothing")) == (True, False)
    assert (again.lines_of("Block", whole=True), again.lines_of("a")) == answers[2:]
    assert again.words_in("import") == words
    assert again.lines_that("hold a colon", lambda: [1]) == [5, 8]
    assert again.lines_that("hold a dot", lambda: [1]) == [1]
    assert again.lines_of("text") == [1]


CALLS = """\
def run(self, x):  # run(x)
    self.run(x)
    # self.run(x)
    later = self.part.run
    return super().run(x) + self.run() + other.run(x) + self.rerun(x)
run(1)
"""


def test_it_is_told_on_what_a_method_is_called() -> None:
    mentions = {
        1: [("", True)],
        2: [("self", True)],
        4: [("self.part", False)],
        5: [("super()", True), ("", False)],
        6: [("", True)],
    }
    first = Text(CALLS)
    assert first.mentions("run") == mentions
    assert Text("another text", first.kept()).mentions("run") == mentions


def test_an_answer_is_a_list_of_ones_own() -> None:
    text = Text("x\nx\n")
    text.lines_of("x").append(9)
    assert text.lines_of("x") == [1, 2]


@pytest.mark.parametrize("kept", [b"", b"\x91\x01", b"\xc1"])
def test_what_is_no_answer_is_refused(kept: bytes) -> None:
    with pytest.raises(MsgspecError):
        Text("x", memoryview(kept))


def test_no_word_at_all_is_on_every_line() -> None:
    assert Text("a = 1\n\nb = 2").lines_of("") == [1, 2, 3]
