"""The static comparison of two trees against a run of both: they must agree on every reduction and every case.

Statically, a rewrite makes a difference in the states in which the guards before and after differ. Whether a case is
such a state is told by the run: each condition of both guards is evaluated where the reduction stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from moe_lint.analysis import Tree as Analysis
from moe_lint.analysis import analyse
from moe_lint.discover import python_file_names
from moe_lint.engine import Options, run
from moe_lint.fixing import ALLOWED, fix
from moe_lint.formula import Formula, Relation, atom_set, conj, disj, evaluate, negate
from moe_lint.initialise import plan_init
from moe_lint.profile import Profile
from moe_lint.reading import Known
from moe_lint.sites import Site
from reference_runtime.discover import Block
from reference_runtime.plan import Settings
from reference_runtime.tree import Tree
from reference_runtime.verdicts import CaseResult, Status, Verdict
from tests.trials.observe import Question, Seen
from tests.trials.variants import Trial, run_variants

#: Absolute path -> text in its place.
Texts = Mapping[str, str]


def repaired(root: Path, profile: Profile) -> dict[str, str]:
    """What `init` and `--fix` make of a tree: the files that they change."""
    plan = plan_init(str(root), profile)
    texts = {str(Path(one.path).resolve()): one.after for one in plan.files} if plan is not None else {}
    options = Options((str(root),), profile, known={})
    fixed = fix(options, run(options, texts), ALLOWED["default"], texts=texts).fixed
    return {**texts, **{str(Path(one.path).resolve()): one.after for one in fixed}}


def analysed(root: Path, profile: Profile, *sides: Texts) -> Iterator[Analysis]:
    """The tree with some texts laid over it, judged, for each of the sides."""
    known: Known = {}
    for texts in sides:
        yield analyse(str(root), python_file_names(str(root)), profile, texts, known)


def laid_over(tree: Tree, texts: Texts, folder: Path) -> Tree:
    """The tree with some texts laid over it, to be run."""
    for path, text in texts.items():
        file = folder / Path(path).relative_to(tree.root)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return replace(tree, overlay=folder.resolve())


@dataclass(frozen=True, slots=True)
class Pair:
    """One reduction before and after: when it is made, as formulas over conditions of its function."""

    path: str
    function: str
    relation: Relation | None
    before: Formula
    after: Formula
    #: condition -> how it is spelled there
    spelling: Mapping[str, str]

    @property
    def difference(self) -> Formula:
        return disj((conj((self.before, negate(self.after))), conj((negate(self.before), self.after))))

    @property
    def conditions(self) -> frozenset[str]:
        return atom_set(self.before) | atom_set(self.after)


def pairs(before: Analysis, after: Analysis, root: Path) -> list[Pair]:
    """The judged reductions of two analyses of one tree, matched by their order in each function."""
    found = []
    ours, theirs = _by_function(before), _by_function(after)
    for key, sites in ours.items():
        others = theirs.get(key, [])
        assert len(sites) == len(others), f"{key}: another number of reductions"
        for one, other in zip(sites, others, strict=True):
            spelling = {flag: name for site in (one, other) for flag, name in site.flags}
            path = Path(one.path).relative_to(root).as_posix()
            found.append(
                Pair(path, one.raw.function, one.relation, _reduces(one, before), _reduces(other, after), spelling)
            )
    return found


def _by_function(tree: Analysis) -> dict[tuple[str, str], list[Site]]:
    found: dict[tuple[str, str], list[Site]] = {}
    for site in tree.sites:
        if site.post_experts and site.comparison is not None:
            found.setdefault((site.path, site.raw.function), []).append(site)
    return found


def _reduces(site: Site, tree: Analysis) -> Formula:
    return tree.policy.with_helper(conj(part.formula for part in site.raw.guard))


@dataclass(frozen=True, slots=True)
class Checked:
    """One case of one block: what the formulas say and what the run did."""

    block: Block
    result: CaseResult
    #: the relations of the reductions whose guards differ in this state
    differing: tuple[Relation | None, ...]
    #: the relations of all reductions that were reached
    reached: tuple[Relation | None, ...]
    undecided: tuple[str, ...]

    @property
    def same(self) -> bool:
        one, other = self.result.before, self.result.after
        return (one.status, one.digest, one.traces) == (other.status, other.digest, other.traces)

    @property
    def disagreement(self) -> str:
        """How the run contradicts the formulas; empty where it does not."""
        verdict, before = self.result.verdict, self.result.before
        where = f"{self.block} {self.result.level} {self.result.case}: {verdict.value} {self.result.detail}"
        if self.undecided:
            return f"{where}: undecided: {'; '.join(self.undecided)}"
        if not self.differing:
            return "" if self.same else f"{where}: the guards agree, the runs do not"
        if before.status is Status.RIGHT:
            return f"{where}: the guards differ, and nothing was wrong"
        return ""

    @property
    def still_wrong(self) -> bool:
        """The guards differ, and the case is wrong after, too: something else is at fault beside them."""
        return bool(self.differing) and self.result.verdict is not Verdict.CORRECTED


def check(
    before: Tree, after: Tree, blocks: Sequence[Block], sites: Sequence[Pair], settings: Settings
) -> list[Checked]:
    """Run blocks before and after, and compare every case that both can do with what the formulas say of it."""
    by_function: dict[tuple[str, str], list[Pair]] = {}
    for pair in sites:
        by_function.setdefault((pair.path, pair.function), []).append(pair)
    questions = [
        Question(path, function, tuple(sorted({p.spelling.get(c, c) for p in found for c in p.conditions})))
        for (path, function), found in by_function.items()
    ]
    trials = run_variants(before, {b: [after] for b in blocks}, settings, dict.fromkeys(blocks, questions))
    named = {function: found for (_, function), found in by_function.items()}
    return [one for found in trials.values() for trial in found[0] for one in _compared(trial, named)]


def _compared(trial: Trial, named: Mapping[str, Sequence[Pair]]) -> Iterator[Checked]:
    assert trial.problem == "", f"{trial.block} {trial.level}: {trial.problem}"
    for result, (_, seen) in zip(trial.cases, trial.seen, strict=True):
        if result.verdict in (Verdict.INFEASIBLE, Verdict.UNMODELLED):
            continue
        differing: list[Relation | None] = []
        reached: list[Relation | None] = []
        undecided: list[str] = []
        for pair, answers in _calls(seen, named):
            reached.append(pair.relation)
            value, why = _value(pair, answers)
            if value:
                differing.append(pair.relation)
            elif value is None:
                undecided.append(f"{pair.function}: {why}")
        yield Checked(trial.block, result, tuple(differing), tuple(reached), tuple(undecided))


def _calls(seen: Seen, named: Mapping[str, Sequence[Pair]]) -> Iterator[tuple[Pair, Mapping[str, bool | str]]]:
    for function, calls in seen.items():
        for answers in calls:
            for pair in named[function]:
                yield pair, answers


def _value(pair: Pair, answers: Mapping[str, bool | str]) -> tuple[bool | None, str]:
    """Whether the guards differ in a state; None where a condition that matters could not be evaluated."""
    state, unknown = {}, []
    for condition in sorted(pair.conditions):
        answer = answers[pair.spelling.get(condition, condition)]
        if isinstance(answer, bool):
            state[condition] = answer
        else:
            unknown.append((condition, answer))
    values = {
        evaluate(pair.difference, {**state, **dict(zip([c for c, _ in unknown], chosen, strict=True))})
        for chosen in product((False, True), repeat=len(unknown))
    }
    if len(values) == 1:
        return values.pop(), ""
    return None, "; ".join(f"{condition}: {why}" for condition, why in unknown)


def summary(checked: Sequence[Checked]) -> Counter[tuple[str, str]]:
    """(level, verdict) -> number of cases."""
    return Counter((one.result.level, one.result.verdict.value) for one in checked)
