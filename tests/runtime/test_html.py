"""The page of a run: a table a level, a coloured cell a case, what happened on hover, nothing loaded."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from reference_runtime.report.html import render
from reference_runtime.verdicts import CaseResult, ModelReport, Outcome, RunReport, Status

RIGHT = Outcome(Status.RIGHT, error=2e-16, scale=1.0, digest="a", trace=("all_reduce(tp, 5x64)",))
TWICE = Outcome(Status.WRONG, error=1.0, scale=2.0, digest="b")
HANG = Outcome(Status.DEADLOCK, detail="nobody can go on: rank 0 <waits>")


class _Cells(HTMLParser):
    """The cells of the tables: (class, title)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "td":
            self.cells.append((given.get("class") or "", given.get("title") or ""))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(*cases: CaseResult, problem: str = "") -> str:
    model = ModelReport("models.block.Block", "models/block.py", cases, problem)
    return render(RunReport("old", "new", {"backend": "threads", "world_sizes": (2, 4)}, (model,), ("a <note>",)))


def cells(text: str) -> list[tuple[str, str]]:
    parser = _Cells()
    parser.feed(text)
    assert parser.open == []
    return parser.cells


def test_every_case_is_a_cell_with_error_and_scale_on_hover() -> None:
    text = page(
        CaseResult("block", "tp2 ep2 dp2 max-len", 2, TWICE, RIGHT), CaseResult("block", "tp2", 2, RIGHT, RIGHT)
    )
    assert [colour for colour, _ in cells(text)] == ["cell corrected", "cell equivalent"]
    assert cells(text)[0][1].splitlines() == [
        "CORRECTED: tp2 ep2 dp2 max-len",
        "before: wrong, relative error 1, scale 2.00",
        "after: right, relative error 2e-16, scale 1.00, all_reduce(tp, 5x64)",
    ]


def test_levels_have_a_table_each_and_cases_that_were_not_run_an_empty_cell() -> None:
    text = page(CaseResult("block", "tp2", 2, RIGHT, RIGHT), CaseResult("layer", "tp4", 4, RIGHT, TWICE))
    assert re.findall("<h2>(.*?)</h2>", text) == ["block level", "layer level"]
    assert [colour for colour, _ in cells(text)] == ["cell equivalent", "cell broken"]


def test_only_what_the_rewrite_broke_is_red() -> None:
    text = page(CaseResult("block", "tp2", 2, RIGHT, HANG), CaseResult("block", "tp4", 4, HANG, HANG))
    assert [colour for colour, _ in cells(text)] == ["cell deadlock", "cell both_wrong"]
    tiles = re.findall(r'<div class="tile (\w+)"><b>(\d+)</b>([^<]+)<', text)
    assert tiles == [("both_wrong", "1", "deadlock, as before"), ("deadlock", "1", "deadlock")]


def test_text_of_the_target_is_no_markup() -> None:
    text = page(CaseResult("block", "tp2", 2, RIGHT, HANG), problem="block: killed <b>")
    assert "rank 0 <waits>" in cells(text)[0][1]
    assert "<waits>" not in text
    assert "killed &lt;b&gt;" in text
    assert "a &lt;note&gt;" in text


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = page(CaseResult("block", "tp2", 2, RIGHT, RIGHT))
    assert not re.search(r"<script|src=|href=|@import|url\(", text)
    assert "{{" not in text
