"""One file's text: its lines, and what was looked for in it.

A word that one file mentions is looked for in all texts of a tree. Where it is depends on the text alone, so it is
remembered, and kept for the next judgement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from msgspec import Struct, field
from msgspec.msgpack import decode, encode

from moe_lint.source import Lines

Statement = Literal["import", "class"]
_STATEMENTS: dict[Statement, re.Pattern[str]] = {
    # from its keyword on (or text that looks like one): to its end, over parentheses and backslashes
    "import": re.compile(r"import\b(?:\s*\((?:[^)#]|#[^\n]*)*|(?:[^\n\\]|\\\n)*)"),
    # a header with bases, from its keyword to the colon (or text that looks like one)
    "class": re.compile(r"class\s+\w+[^(\n]*\((?:[^:#]|#[^\n]*)*"),
}
_WORD = re.compile(r"\w+")
#: What a method is called on (`self`, a part of it, or `super()`; nothing: something else), and whether it is called.
Mention = tuple[str, bool]


class _Answers(Struct, array_like=True):
    holds: dict[str, bool] = field(default_factory=dict)
    #: text -> the lines that hold it
    lines: dict[str, list[int]] = field(default_factory=dict)
    #: identifier -> the lines that hold it as a whole
    whole: dict[str, list[int]] = field(default_factory=dict)
    #: the words in statements of a kind
    named: dict[Statement, list[str]] = field(default_factory=dict)
    #: method -> line -> how it is named there
    mentions: dict[str, dict[int, list[Mention]]] = field(default_factory=dict)
    #: pattern -> what it finds
    found: dict[str, list[str]] = field(default_factory=dict)
    #: question -> the lines that answer it
    asked: dict[str, list[int]] = field(default_factory=dict)


class Text:
    """A text, and the answers so far. ``kept`` are those of an earlier run on the same text.

    Raises ``msgspec.MsgspecError``.
    """

    def __init__(self, text: str | Callable[[], str], kept: memoryview | None = None) -> None:
        self.lines = Lines(text)
        self._answers = _Answers() if kept is None else decode(kept, type=_Answers)

    def kept(self) -> memoryview:
        """The answers, for a later run that finds the same text."""
        return memoryview(encode(self._answers))

    def __str__(self) -> str:
        return self.lines.text

    def holds(self, word: str) -> bool:
        """Whether the text holds a word, as part of another one or not."""
        known = self._answers.holds
        if word not in known:
            known[word] = word in self.lines.text
        return known[word]

    def lines_of(self, word: str, whole: bool = False) -> list[int]:
        """The lines that hold a word, once for each time; as a whole identifier if asked for.

        No word at all (what a profile's pattern `*` is sure to hold) is on every line.
        """
        if not word:
            return list(range(1, len(self.lines) + 1))
        known = self._answers.whole if whole else self._answers.lines
        if word not in known:
            known[word] = [self.lines.number(position) for position in self._positions(word, whole)]
        return list(known[word])

    def _positions(self, word: str, whole: bool) -> Iterable[int]:
        """`str.find` with a look at the neighbours: five times as fast as a regular expression with lookarounds."""
        text = self.lines.text
        position = text.find(word)
        while position >= 0:
            end = position + len(word)
            before, after = text[position - 1 : position], text[end : end + 1]
            if not whole or not (before.isalnum() or before == "_" or after.isalnum() or after == "_"):
                yield position
            position = text.find(word, end)

    def finds(self, pattern: str) -> list[str]:
        """What a pattern of at most one group finds in the text, `^` and `$` at the ends of lines."""
        known = self._answers.found
        if pattern not in known:
            known[pattern] = re.findall(pattern, self.lines.text, re.MULTILINE)
        return known[pattern]

    def mentions(self, method: str) -> dict[int, list[Mention]]:
        """How a method is named on each line; definitions, calls without arguments and comments are left out."""
        known = self._answers.mentions
        if method not in known:
            known[method] = dict(self._mentions(method))
        return known[method]

    def _mentions(self, method: str) -> Iterator[tuple[int, list[Mention]]]:
        pattern = re.compile(
            rf"(?<![\w.])(?:(self(?:\.\w+)*|super\(\))\.|(def\s+))?{method}(?!\w)(\(\)?)?|(?<=\.){method}(?!\w)"
        )
        for number in dict.fromkeys(self.lines_of(method, whole=True)):
            line = self.lines[number - 1]
            found = pattern.findall(line) if not line.lstrip().startswith("#") else ()
            named = [(receiver, call == "(") for receiver, defined, call in found if not defined and call != "()"]
            if named:
                yield number, named

    def lines_that(self, question: str, answer: Callable[[], Iterable[int]]) -> list[int]:
        """The lines that answer a question about this text.

        The question says all that the answer rests on, but for what the bundled or own profile says: what a tree makes
        of that (which flags and collectives it has, what derives from an absorber) is part of the question.
        """
        known = self._answers.asked
        if question not in known:
            known[question] = list(answer())
        return list(known[question])

    def words_in(self, statement: Statement) -> list[str]:
        """The words in statements of a kind, at least, each once: told without parsing them."""
        known = self._answers.named
        if statement not in known:
            written = " ".join(_STATEMENTS[statement].findall(self.lines.text))
            known[statement] = list(dict.fromkeys(_WORD.findall(written)))
        return known[statement]
