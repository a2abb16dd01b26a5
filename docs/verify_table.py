"""From reports of `moe-lint verify TREE TREE --models '*' --world-size 2 -o json:RELEASE.json` the tables of verify.md.

    python docs/verify_table.py RELEASE.json…

Writes them into `docs/verify.md`, between its marks. A file is named like the release that it is of.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("verify.md")
LEVELS = ("block", "layer")
Report = Mapping[str, Any]


def why_not(model: Report, level: str) -> str | None:
    """Why a block has not run in every case at a level; None if it has."""
    cases = [case for case in model["cases"] if case["level"] == level]
    unmodelled = [case for case in cases if case["verdict"] == "UNMODELLED"]
    if unmodelled:
        return reason(unmodelled[0]["detail"]) + ("" if len(unmodelled) == len(cases) else ", in some cases")
    problem = next((part for part in (model["problem"] or "").split("; ") if part.startswith(f"{level}:")), "")
    return problem or (None if cases else "no case")


def reason(detail: str) -> str:
    """A reason without what differs from block to block."""
    text = re.sub(r"^\S+\.py:\d+: ", "", detail)
    text = re.sub(r"^(no decoder layer found) around \w+$", r"\1", text)
    text = re.sub(r"^\w+ built no \w+$", "the decoder builds no such block in its first two layers", text)
    text = re.sub(r"^.*(size of tensor a|expanded size of the tensor) .*$", "rows of different sizes meet", text)
    return text.replace("|", r"\|")


def table(reports: Mapping[str, Report]) -> Iterator[str]:
    """A line per release and level."""
    yield "| release | blocks | level | run | right in all cases | not run |"
    yield "|---|---:|---|---:|---:|---:|"
    for release, report in reports.items():
        for level in LEVELS:
            models = report["models"]
            run = [model for model in models if why_not(model, level) is None]
            good = ("EQUIVALENT", "INFEASIBLE")
            right = [m for m in run if all(c["verdict"] in good for c in m["cases"] if c["level"] == level)]
            head = f"| {release} | {len(models)} " if level == LEVELS[0] else "| | "
            yield f"{head}| {level} | {len(run)} | {len(right)} | {len(models) - len(run)} |"


def reasons(reports: Mapping[str, Report]) -> Iterator[str]:
    """A line per reason: which blocks, in which releases."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for release, report in reports.items():
        for model in report["models"]:
            for level in LEVELS:
                why = why_not(model, level)
                if why is not None:
                    places = found.setdefault((why, level), {})
                    places.setdefault(model["model"].partition(".")[0], []).append(release)
    yield "| level | reason | blocks and releases |"
    yield "|---|---|---|"
    for (why, level), blocks in sorted(found.items(), key=lambda item: (item[0][1], -len(item[1]), item[0][0])):
        where = "; ".join(f"{block} {span(releases)}" for block, releases in blocks.items())
        yield f"| {level} | {why} | {where} |"


def span(releases: Sequence[str]) -> str:
    """The first and the last of some releases."""
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"


def unreached(reports: Mapping[str, Report]) -> Iterator[str]:
    """A line per function with a reduction that no case makes."""
    found: dict[str, list[str]] = {}
    for release, report in reports.items():
        for model in report["models"]:
            if all(why_not(model, level) is None for level in LEVELS):
                for one in model["not_reached"]:
                    function = f"`{one['function']}` ({model['model'].partition('.')[0]})"
                    releases = found.setdefault(function, [])
                    if release not in releases:
                        releases.append(release)
    yield "| function | releases |"
    yield "|---|---|"
    for function, releases in sorted(found.items()):
        yield f"| {function} | {span(releases)} |"


def main() -> None:
    if not sys.argv[1:]:
        sys.exit("name the reports: without any, the tables would be emptied")
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in map(Path, sys.argv[1:])}
    page = PAGE.read_text(encoding="utf-8")
    for name, lines in (("table", table), ("reasons", reasons), ("unreached", unreached)):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = page.partition(begin)
        page = head + begin + "\n".join(lines(reports)) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
