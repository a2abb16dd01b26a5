"""What became of the mutants, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.mutation.driver import Result
from tests.trials.variants import Trial

_HEAD = """\
# Mutation test of the reference runtime

Written by `python -m tests.mutation TREE`; do not edit. Every reduction after the experts that the central helper
decides on is sabotaged in every way of `tests/mutation/operators.py`, one at a time. Each mutant is run against its
original at block level and at layer level (world sizes 2 and 4, ranks as threads), until a case is broken. A mutant
that no case tells from the original must be argued to be the same function: by the truth tables of both guards, or
because no launch configuration of the engine shows their difference (`tests/mutation/equivalence.py`).

"""


@dataclass(frozen=True, slots=True)
class Row:
    """One mutant. ``found``: level -> the first case that tells it from the original, with its verdict."""

    model: str
    function: str
    kind: str
    what: str
    outcome: str
    found: tuple[tuple[str, str], ...]
    why: str


def row(result: Result) -> Row:
    """A result in words."""
    found = tuple((trial.level, _first(trial)) for trial in result.trials)
    why = result.argument.why if result.argument is not None else ""
    mutant = result.mutant
    return Row(result.block.module, result.function, mutant.kind, mutant.what, result.outcome, found, why)


def _first(trial: Trial) -> str:
    case = trial.refuted or next(iter(trial.differing), None)
    return "" if case is None else f"{case.case}: {case.verdict.value}"


def render(rows: Sequence[Row], tree: str, seconds: float) -> str:
    """The document."""
    models = list(dict.fromkeys(one.model for one in rows))
    kinds = list(dict.fromkeys(one.kind for one in rows))
    counts = Counter(one.outcome for one in rows)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("caught", "equal", "not run", "missed"))
    levels = Counter(level for one in rows for level, case in one.found if case)
    parts = [
        _HEAD,
        f"Tree: {tree}. {len(rows)} mutants of {len(kinds)} kinds in {len(models)} model files: {told};"
        f" {seconds:.0f} s. Told apart at block level: {levels['block']}, at layer level: {levels['layer']}.\n\n",
        "## Kinds and models\n\n`B`: caught at block level, `L`: at layer level, `=`: the same function, `·`: in a"
        " function that no case runs, `!`: missed. Several reductions of one file: each of their marks.\n\n",
        _matrix(rows, kinds, models),
        "\n## The first case that tells a mutant from its original\n\nCounted over all models.\n\n",
        _cases(rows, kinds),
        _rest(rows, "equal", "The same function", "These cannot be told apart; nothing does."),
        _rest(rows, "not run", "Not run", "The sabotaged function is called in no case."),
        _rest(rows, "missed", "Missed", "The guards differ, and no case shows it. The launch would."),
        _one_level(rows),
    ]
    return "".join(parts)


def _matrix(rows: Sequence[Row], kinds: Sequence[str], models: Sequence[str]) -> str:
    lines = [f"| | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for kind in kinds:
        cells = [_cell([one for one in rows if one.kind == kind and one.model == model]) for model in models]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Row]) -> str:
    marks = {"missed": "!", "equal": "=", "not run": "·"}
    levels = ["".join(level[0].upper() for level, case in one.found if case) for one in rows]
    found = dict.fromkeys(marks.get(one.outcome, caught) for one, caught in zip(rows, levels, strict=True))
    return " ".join(sorted(found, key=len))


def _cases(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    lines = ["| sabotage | block level | layer level |", "|---|---|---|"]
    for kind in kinds:
        cells = [_counted(case for one in rows if one.kind == kind for lv, case in one.found if lv == level and case)
                 for level in ("block", "layer")]  # fmt: skip
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _counted(cases: Iterable[str]) -> str:
    return "<br>".join(f"{case} ({count})" for case, count in Counter(cases).most_common())


def _rest(rows: Sequence[Row], outcome: str, title: str, text: str) -> str:
    lines = [f"| {r.model} | `{r.function}` | {r.kind}: {r.what} | {r.why} |" for r in rows if r.outcome == outcome]
    head = f"\n## {title}\n\n{text}\n\n| model | function | sabotage | why |\n|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n" if lines else ""


def _one_level(rows: Sequence[Row]) -> str:
    lines = []
    for one in rows:
        if one.outcome == "caught" and not all(case for _, case in one.found):
            first = "; ".join(f"{level}: {case}" for level, case in one.found if case)
            lines.append(f"| {one.model} | `{one.function}` | {one.kind}: {one.what} | {first} |")
    head = "\n## Caught at one level only\n\n| model | function | sabotage | first case |\n|---|---|---|---|\n"
    return head + "\n".join(lines) + "\n" if lines else ""
