"""Whole processes, side by side in one run: CPU seconds, wall seconds and peak memory, as medians and as ratios.

    make bench                                   # the table of benchmarks/README.md
    python benchmarks/measure.py --runs 3 --quick

Every row is a fresh process. On Linux the processes are held to two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.corpus.releases import release  # noqa: E402  (the downloads are shared with the corpus tests)

BIN = Path(sys.executable).parent
README = Path(__file__).with_name("README.md")
#: Where a table stands in the README.
BEGIN, END = "<!-- begin {} -->", "<!-- end {} -->"
#: Releases for the growth with the size of a tree, smallest first.
GROWTH = ("0.5.3", "0.5.11", "0.5.16", "0.5.23")
SYNTHETIC = 20_000


@dataclass(frozen=True)
class Cost:
    """One process: CPU seconds (user and system), wall seconds, peak memory in MiB."""

    cpu: float
    wall: float
    memory: float


@dataclass(frozen=True)
class Row:
    """A line of the table. ``ratio``: CPU and wall against the peer of the same tree."""

    what: str
    files: int
    cost: Cost
    peer: Cost | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="processes per row; the median counts")
    parser.add_argument("--quick", action="store_true", help="leave out growth and the peers other than ruff")
    parser.add_argument("--part", choices=["all", "check", "verify"], default="all", help="which table to make")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {README.name}")
    arguments = parser.parse_args()
    # what is installed runs from compiled files
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as folder:
        if arguments.part != "verify":
            rows = [*_main_rows(Path(folder), arguments.runs)]
            if not arguments.quick:
                rows += _peers(arguments.runs)
                rows += _growth(Path(folder), arguments.runs)
            _tell("table", _table(rows, arguments.runs), arguments.write)
        if arguments.part != "check":
            _tell("verify", _verify_table(_verify_rows(Path(folder)), os.getloadavg()[0]), arguments.write)


def _tell(name: str, table: str, write: bool) -> None:
    sys.stdout.write(table)
    if write:
        begin, end = BEGIN.format(name), END.format(name)
        text = README.read_text(encoding="utf-8")
        head, tail = text.split(begin)[0], text.split(end)[1]
        README.write_text(f"{head}{begin}\n{table}{end}{tail}", encoding="utf-8")


def measure(
    command: Sequence[str], runs: int, before: Callable[[], None] = lambda: None, fine: Sequence[int] = (0, 1)
) -> Cost:
    """The medians over fresh processes; ``before`` is done ahead of each. A failing process ends the benchmark."""
    costs = []
    for _ in range(runs):
        before()
        with open(os.devnull, "wb") as null:
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=null, stderr=null)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
        code = os.waitstatus_to_exitcode(status)
        process.returncode = code
        if code not in fine:
            raise SystemExit(f"{' '.join(command)}: exit status {code}")
        scale = 1 << 10 if platform.system() == "Linux" else 1 << 20
        costs.append(Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / scale))
    return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in ("cpu", "wall", "memory")))


def _main_rows(folder: Path, runs: int) -> list[Row]:
    rows = []
    for version in ("0.5.11", "0.5.23"):
        tree = _copy(release(version) / "sglang", folder / version / "sglang")
        cache = folder / f"cache-{version}"
        files = _count(tree)
        lint = [str(BIN / "moe-lint"), "--cache-dir", str(cache)]
        ruff = [str(BIN / "ruff"), "check", "--select", "F401", "--isolated", "--exit-zero"]
        cold_peer = measure([*ruff, "--no-cache", str(tree)], runs)
        warm_peer = measure([*ruff, "--cache-dir", str(folder / "ruff"), str(tree)], runs + 1)
        rows.append(Row(f"ruff F401, {version}, no cache", files, cold_peer))
        rows.append(Row(f"ruff F401, {version}, warm", files, warm_peer))
        floor = measure([sys.executable, str(Path(__file__).with_name("floor.py")), str(tree)], runs)
        rows.append(Row(f"floor in Python, {version}: read, search, parse what may matter", files, floor, cold_peer))
        rows.append(Row(f"check {version}, cold", files, measure([*lint, "--no-cache", str(tree)], runs), cold_peer))
        measure([*lint, str(tree)], 1)
        rows.append(Row(f"check {version}, warm, nothing changed", files, measure([*lint, str(tree)], runs), warm_peer))
        other, site = _first(tree / "lang"), _first(tree / "srt" / "models", holding=b"all_reduce")
        for what, path in (("a file that does not matter", other), ("a model file", site)):
            cost = measure([*lint, str(tree)], runs, lambda path=path: _append(path))  # type: ignore[misc]
            rows.append(Row(f"check {version}, {what} changed", files, cost, cold_peer))
        five = [str(path) for path in sorted((tree / "srt" / "models").glob("q*.py"))[:5]]
        measure([*lint, str(tree)], 1)
        rows.append(
            Row(f"check {version}, five files as pre-commit names them, warm", 5, measure([*lint, *five], runs))
        )
    sweep = folder / "sweep"

    def fresh() -> None:
        shutil.rmtree(sweep, ignore_errors=True)
        _copy(release("0.5.10.post1") / "sglang", sweep)
        subprocess.run([str(BIN / "moe-lint"), "init", str(sweep)], check=True, capture_output=True)

    cost = measure([str(BIN / "moe-lint"), "--no-cache", "--fix", str(sweep)], runs, fresh)
    rows.append(Row("--fix of the sweep over 0.5.10.post1, no cache", _count(sweep), cost))
    kept = [str(BIN / "moe-lint"), "--cache-dir", str(folder / "sweep-cache")]

    def checked() -> None:
        fresh()
        subprocess.run([*kept, str(sweep)], check=False, capture_output=True)

    rows.append(Row("the same after a check", _count(sweep), measure([*kept, "--fix", str(sweep)], runs, checked)))
    return rows


def _verify_rows(folder: Path) -> list[tuple[str, int, int, Cost]]:
    """(what, blocks, cases, cost) of running a release before and after the fix: every block that it rewrites."""
    before = release("0.5.10.post1") / "sglang"
    after = folder / "fixed" / "sglang"
    _copy(before, after)
    for arguments in (["init"], ["--no-cache", "--fix"]):
        subprocess.run([str(BIN / "moe-lint"), *arguments, str(after)], check=False, capture_output=True)
    three = ["--models", "qwen3_moe,deepseek_v2,glm4_moe", "--world-size", "4"]
    rows = []
    for what, options in (
        ("threads, both levels, 2 and 4 ranks", []),
        ("threads, both levels, 4 ranks", three),
        ("gloo, both levels, 4 ranks", [*three, "--backend", "gloo"]),
        ("gloo, block level, 4 ranks", [*three, "--backend", "gloo", "--level", "block"]),
        ("threads, both levels, 8 ranks", [*three[:2], "--world-size", "8"]),
    ):
        report = folder / "report.json"
        command = [str(BIN / "moe-lint"), "verify", str(before), str(after), *options, "--jobs", "2"]
        cost = measure([*command, "-o", f"json:{report}"], 1, fine=(0, 2))  # 2: a block is not modelled
        models = json.loads(report.read_text(encoding="utf-8"))["models"]
        rows.append((what, len(models), sum(len(model["cases"]) for model in models), cost))
    return rows


def _verify_table(rows: Sequence[tuple[str, int, int, Cost]], load: float) -> str:
    lines = [
        f"One process each; Python {platform.python_version()}, {platform.machine()}, two cores; load average at the "
        f"end {load:.1f}, of which the runs themselves make 2.",
        "",
        "| what | blocks | cases | CPU s | wall s |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| {what} | {blocks} | {cases} | {c.cpu:.1f} | {c.wall:.1f} |" for what, blocks, cases, c in rows]
    return "\n".join(lines) + "\n"


def _peers(runs: int) -> list[Row]:
    """Comparable searches by other tools: those on the path. Fixit wants another click than our tests."""
    tree = release("0.5.23") / "sglang"
    rows = []
    if (ast_grep := shutil.which("ast-grep")) is not None:
        pattern = ["run", "--lang", "python", "--pattern", "tensor_model_parallel_all_reduce($A)", str(tree)]
        rows.append(Row("ast-grep, one pattern, 0.5.23", _count(tree), measure([ast_grep, *pattern], runs)))
    if (fixit := shutil.which("fixit")) is not None:
        five = [str(path) for path in sorted((tree / "srt" / "models").glob("q*.py"))[:5]]
        rows.append(Row("Fixit, its own rules, five files", 5, measure([fixit, "lint", *five], runs)))
    return rows


def _growth(folder: Path, runs: int) -> list[Row]:
    rows = []
    for version in GROWTH:
        tree = release(version) / "sglang"
        cost = measure([str(BIN / "moe-lint"), "--no-cache", str(tree)], runs)
        rows.append(Row(f"growth: check {version}, cold", _count(tree), cost))
    tree = folder / "synthetic"
    source = release("0.5.23") / "sglang"
    copies = SYNTHETIC // _count(source)
    for number in range(copies):
        shutil.copytree(source, tree / f"package{number}" / "sglang")
    for number in range(SYNTHETIC - _count(tree)):
        (tree / f"filler{number}.py").write_text(f"def f{number}():\n    return {number}\n")
    cost = measure([str(BIN / "moe-lint"), "--no-cache", str(tree)], runs)
    rows.append(Row(f"growth: {copies} copies of 0.5.23 and filler, cold", _count(tree), cost))
    return rows


def _copy(source: Path, target: Path) -> Path:
    """A copy whose files are old enough for their times to be trusted."""
    shutil.copytree(source, target)
    old = time.time() - 3600
    for path in target.rglob("*.py"):
        os.utime(path, (old, old))
    return target


def _count(tree: Path) -> int:
    return sum(1 for _ in tree.rglob("*.py"))


def _first(folder: Path, holding: bytes = b"") -> Path:
    """The first Python file of a folder that holds something."""
    return next(path for path in sorted(folder.rglob("*.py")) if holding in path.read_bytes())


def _append(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("_CHANGED = True\n")


def _table(rows: Sequence[Row], runs: int) -> str:
    lines = [
        f"Medians of {runs} processes; Python {platform.python_version()}, {platform.machine()}, two cores. "
        "Ratios are against ruff on the same tree in the same run.",
        "",
        "| what | files | CPU s | wall s | MiB | CPU ratio | wall ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        c, p = row.cost, row.peer
        ratios = (f"{c.cpu / p.cpu:.2f}", f"{c.wall / p.wall:.2f}") if p is not None else ("", "")
        lines.append(
            f"| {row.what} | {row.files} | {c.cpu:.2f} | {c.wall:.2f} | {c.memory:.0f} | {ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
