"""One tree against many variants of it, each run until it is refuted. Drives the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reference_runtime.discover import Block
from reference_runtime.launch import VerifyError, Worker, need_torch
from reference_runtime.plan import Settings
from reference_runtime.tree import Tree
from reference_runtime.verdicts import CaseResult, Outcome, Status, outcome_from_dict
from tests.trials.job import Job
from tests.trials.observe import Question, Seen


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant of one block at one level.

    Attributes:
        cases: in order, up to the first broken one.
        seen: per case, what was found out (before, after): function -> per call: condition -> whether it held, or why
            that cannot be told.
        problem: why the process of the variant, or the whole run of the block, ended early.
    """

    block: Block
    level: str
    cases: tuple[CaseResult, ...]
    seen: tuple[tuple[Seen, Seen], ...] = ()
    problem: str = ""

    @property
    def refuted(self) -> CaseResult | None:
        """The case that is right before and not with the variant; None: there is none."""
        return next((case for case in self.cases if case.regression), None)

    @property
    def differing(self) -> list[CaseResult]:
        """The cases in which the variant does not do what is done before, in bits or collectives."""
        return [case for case in self.cases if _does(case.before) != _does(case.after)]


def _does(outcome: Outcome) -> tuple[str, ...]:
    return outcome.status.value, outcome.digest, outcome.traces


@dataclass
class _State:
    job: Job
    outcomes: dict[str, dict[int, Outcome]] = field(default_factory=dict)
    seen: dict[tuple[str, int], Seen] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    ended: str = "not run"

    def take(self, line: Mapping[str, object]) -> None:
        if "ended" in line:
            self.ended = str(line["ended"])
        elif "stopped" in line:
            self.stopped[str(line["side"])] = str(line["stopped"])
        else:
            outcome, seen, side, case = line["outcome"], line["seen"], str(line["side"]), int(str(line["case"]))
            assert isinstance(outcome, dict)
            assert isinstance(seen, dict)
            self.outcomes.setdefault(side, {})[case] = outcome_from_dict(outcome)
            self.seen[side, case] = seen

    def trial(self, number: int) -> Trial:
        before, after = self.outcomes.get("before", {}), self.outcomes.get(str(number), {})
        why = self.stopped.get(str(number), self.ended)
        found = []
        for position, case in enumerate(self.job.cases()):
            if position not in before or (position not in after and not why):
                break
            outcome = after.get(position, Outcome(Status.FAILED, detail=why))
            found.append(CaseResult(self.job.level, str(case), case.topology.tp, before[position], outcome))
            if position not in after:
                break
        seen = [(self.seen.get(("before", n), {}), self.seen.get((str(number), n), {})) for n in range(len(found))]
        return Trial(self.job.block, self.job.level, tuple(found), tuple(seen), why)


def run_variants(
    before: Tree,
    variants: Mapping[Block, Sequence[Tree]],
    settings: Settings,
    questions: Mapping[Block, Sequence[Question]] | None = None,
) -> dict[Block, list[list[Trial]]]:
    """Run some variants of each block at every level of the settings: block -> per variant a trial per level.

    The variants of a block are overlays of one tree. Ranks are threads.

    Raises:
        VerifyError: no torch, or the variants of a block differ in more than their overlay.
    """
    need_torch("run_variants")
    jobs: list[Job] = []
    for block, trees in variants.items():
        if len({tree.folder for tree in trees}) > 1:
            raise VerifyError(f"{block}: variants of more than one tree")
        overlays = tuple(str(tree.overlay or "") for tree in trees)
        for level in settings.levels if trees else ():
            jobs.append(
                Job(
                    len(jobs), level, block, str(before.folder), str(trees[0].folder), settings,
                    before_overlay=str(before.overlay or ""), variants=overlays,
                    questions=tuple((questions or {}).get(block, ())),
                )
            )  # fmt: skip
    states = [_State(job) for job in jobs]
    if jobs:
        with Worker(settings, Job.__module__) as worker:
            worker.run(jobs, lambda line: states[int(str(line["job"]))].take(line))
    found: dict[Block, list[list[Trial]]] = {}
    for block, trees in variants.items():
        own = [state for state in states if state.job.block == block]
        found[block] = [[state.trial(number) for state in own] for number in range(len(trees))]
    return found
