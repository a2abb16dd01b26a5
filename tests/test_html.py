"""The drift matrix as a page: self-contained, escaped, and at work in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.runs import EXPECTED, moe_lint

VOID = {"meta", "input", "wbr", "br", "img", "link"}


class Page(HTMLParser):
    """The tags of a page, and whether each that opens also closes in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def sites(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "tbody"]


def page(*args: str) -> str:
    return moe_lint("matrix", "--format", "html", *args).stdout


def test_the_page_has_a_row_for_every_site_and_a_column_for_every_reason(tree: Path) -> None:
    html = Page(page("engine"))
    sites = moe_lint("matrix", "--format", "json", "engine").stdout
    assert len(html.sites()) == sites.count('"collective"')
    assert sum(attributes.get("class") == "atom" for _, attributes in html.tags) == 4


def test_a_check_writes_the_same_page(tree: Path) -> None:
    moe_lint("-o", "html:check.html", "engine")
    assert Path("check.html").read_text() == page("engine")


def test_the_page_loads_nothing(tree: Path) -> None:
    text = page("engine")
    assert re.findall(r"https?:|url\(|@import|//[a-z]", text) == []
    assert not {"src", "href", "srcset"} & {name for _, attributes in Page(text).tags for name in attributes}
    assert "default-src 'none'" in text


def test_names_from_the_tree_are_text_not_markup(tree: Path) -> None:
    (tree / "engine/models/fusion_only.py").rename(tree / 'engine/models/"><img onerror=x>{{rows}}.py')
    path = tree / "engine/models/pair.py"
    path.write_text(path.read_text().replace("self.ep_size > 1", 'self.mode != "</script><b>" and self.ep_size > 1'))
    html = Page(page("engine"))
    assert "img" not in {tag for tag, _ in html.tags}
    assert any("<img onerror=x>{{rows}}" in (site["data-text"] or "") for site in html.sites())
    assert any('"</script><b>"'.replace('"', "'") in (site["data-text"] or "") for site in html.sites())


def test_what_has_no_row_is_listed_below(tree: Path) -> None:
    right = tree / "engine/models/right.py"
    right.write_text(right.read_text() + "\n\nX = 1  # moe-lint: ignore[MOE001] nothing here\n")
    (tree / "engine/models/broken.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)\n")
    text = page("engine")
    assert "Findings elsewhere" in text
    assert "engine/models/right.py:40" in text
    assert "engine/models/broken.py:1" in text[text.index("Not judged") :]


# --- in a browser


def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("BROWSER_UNDER_TEST") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser to try the page in: none of {', '.join(names)} is installed")
    return found


def tried(page: Path, fragment: str, script: str) -> list[object]:
    """What ``script`` hands to `tell`, run in the page as a browser shows it at an address."""
    told = """
        const told = [];
        const tell = value => told.push(value);
        const visible = () => [...document.querySelectorAll("tbody:not([hidden]) .site")]
            .map(site => site.textContent.split("/").pop());
    """
    end = 'document.body.textContent = "told:" + JSON.stringify(told) + ":told";'
    copy = page.with_name("tried.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{told}{script}{end}</script></body>"))
    command = [browser(), "--headless", "--disable-gpu", "--no-sandbox", "--dump-dom", f"{copy.as_uri()}#{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search("told:(.*):told", done.stdout)
    assert found is not None, done.stderr
    values: list[object] = json.loads(unescape(found[1]))
    return values


@pytest.fixture
def matrix(tree: Path) -> Path:
    path = tree / "engine/models/right.py"
    path.write_text(path.read_text() + "\n\ndef norm(x):\n    return tensor_model_parallel_all_reduce(x)\n")
    moe_lint("matrix", "-o", "html:matrix.html", "engine")
    return tree / "matrix.html"


def test_the_address_filters_the_rows(matrix: Path) -> None:
    script = "tell(visible()); tell(document.getElementById('count').textContent);"
    assert tried(matrix, "q=pair&axis=EP&drift=1", script) == [["pair.py:19"], "1 of 9 shown"]


def test_typing_choosing_and_clicking_work(matrix: Path) -> None:
    script = """
        tell(visible());
        const set = (name, value) => {
            const field = form.elements[name];
            if (field.type === "checkbox") field.checked = value; else field.value = value;
            field.dispatchEvent(new Event("input", { bubbles: true }));
        };
        set("all", true); tell(visible()); set("all", false);
        set("drift", true); tell(visible()); set("drift", false);
        set("q", "MOE002 forward"); tell(visible()); tell(location.hash); set("q", "");
        const head = document.querySelector("thead button");
        head.click(); tell(visible());
        head.click(); tell(visible());
        const details = () => document.querySelectorAll(".detail:not([hidden])").length;
        tell(details()); document.querySelector(".site").click(); tell(details());
        document.querySelector(".site").click(); tell(details());
    """
    start, every, drifting, typed, address, rising, falling, *details = tried(matrix, "", script)
    assert isinstance(start, list)
    assert isinstance(every, list)
    assert isinstance(drifting, list)
    assert (len(start), set(every) - set(start)) == (8, {"right.py:41"})
    assert set(drifting) == {f"{name}:{line}" for name, line, _ in EXPECTED}
    assert (typed, address) == (["unguarded.py:19"], "#q=MOE002+forward")
    assert rising == sorted(start)
    assert falling == sorted(start)[::-1]
    assert details == [0, 1, 0]
