"""The README's pictures: made from real output, and what is in them is what is printed now."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from tests.runs import FIXTURE, moe_lint

ROOT = Path(__file__).parents[1]


def test_the_picture_of_the_terminal_shows_what_is_printed_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURE)
    picture = (ROOT / "docs/pictures/terminal.svg").read_text()
    shown = unescape("".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture)))
    for command in ("engine/models/pair.py", "--diff engine/models/fusion_only.py"):
        printed = f"$ moe-lint {command}\n{moe_lint(*command.split()).stdout}"
        assert "".join(printed.split()) in "".join(shown.split()), "`make pictures` makes it anew"


def test_the_pictures_are_small_and_load_nothing() -> None:
    picture = (ROOT / "docs/pictures/terminal.svg").read_text()
    assert re.findall(r"(?:href|src)=|url\((?!#)|@import|@font-face", picture) == []
    assert sum(file.stat().st_size for file in (ROOT / "docs/pictures").iterdir()) < 2**20
