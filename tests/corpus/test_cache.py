"""Real trees with edits at random places: what is kept of a file never changes an answer."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from moe_lint.cache import Cache
from moe_lint.engine import Options, run
from moe_lint.profile import load_profile
from tests.corpus.releases import release

SGLANG = load_profile("sglang")
Lines = list[str]


def _at(pattern: str, change: Callable[[str], str | None]) -> Callable[[Lines, random.Random], None]:
    """An edit of one of the lines that match; no text: the line goes."""

    def edit(lines: Lines, chance: random.Random) -> None:
        number = chance.choice([n for n, line in enumerate(lines) if re.search(pattern, line)] or [0])
        new = change(lines[number])
        lines[number : number + 1] = [new] if new is not None else []

    return edit


EDITS = [
    _at("", lambda line: f"{line}\n# a comment"),
    _at("", lambda line: None),
    _at(r"^\s+if .*:$", lambda line: re.sub(r"if (.*):$", r"if not (\1):", line)),
    _at(r" and ", lambda line: line.replace(" and ", " or ")),
    _at(r"all_reduce\(", lambda line: None),
    _at(r"^class ", lambda line: re.sub(r"class (\w+)", r"class \1Else", line)),
    _at(r"import ", lambda line: None),
    _at(r"^    def ", lambda line: f"    def added(self, x):\n        return self.experts(x)\n\n{line}"),
]


def test_edits_at_random_places_are_judged_as_without_the_cache(tmp_path: Path) -> None:
    chance = random.Random(11)
    root = tmp_path / "sglang"
    shutil.copytree(release("0.5.11") / "sglang", root)
    files = [
        path for path in sorted(root.rglob("*.py")) if b"experts" in (data := path.read_bytes()) and b"def " in data
    ]
    plain = Options((str(root),), SGLANG, select=("ALL",))
    kept = Options((str(root),), SGLANG, select=("ALL",), cache=Cache(tmp_path / "cache"))
    run(kept)
    for _ in range(5):
        told = []
        for path in chance.sample(files, chance.choice([1, 3])):
            lines = path.read_text(encoding="utf-8").split("\n")
            number = chance.randrange(len(EDITS))
            EDITS[number](lines, chance)
            path.write_text("\n".join(lines), encoding="utf-8")
            told.append((path.name, number))
        assert run(kept) == run(plain), told
