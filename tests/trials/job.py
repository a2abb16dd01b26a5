"""One tree against many variants of it: what the variants are compared with is run once. Runs in the worker."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from reference_runtime import job, plan
from reference_runtime.limits import forking
from reference_runtime.ranks import Numerics, ThreadRanks
from reference_runtime.run import ENOUGH, Enough, fork, members_of, oracle_of, prepare, run_cases
from reference_runtime.scenarios import Case
from reference_runtime.space import compiled_files, libraries
from reference_runtime.specs import spec_of
from reference_runtime.subjects import Subject
from reference_runtime.tree import Tree
from reference_runtime.verdicts import CaseResult, Outcome, outcome_to_dict
from tests.trials.observe import Log, Observed, Question

_TICK = 0.005


@dataclass(frozen=True, slots=True)
class Job(plan.Job):
    """One block at one level, against many variants of its tree.

    Attributes:
        variants: overlays of ``after`` to be run one by one; each only until it is refuted.
        questions: what to find out on the way.
    """

    variants: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()

    @property
    def timeout(self) -> float:
        """Seconds for the whole job."""
        return self.settings.timeout * (1 + len(self.variants))

    @property
    def imports(self) -> object:
        """Each job has a process of its own, and its variants one each."""
        return self.number

    def to_dict(self) -> dict[str, Any]:
        return {
            **plan.Job.to_dict(self),
            "variants": list(self.variants),
            "questions": [asdict(question) for question in self.questions],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Job:
        one = plan.Job.from_dict(data)
        questions = (Question(q["path"], q["function"], tuple(q["conditions"])) for q in data["questions"])
        known = {field.name: getattr(one, field.name) for field in fields(one)}
        return cls(**known, variants=tuple(data["variants"]), questions=tuple(questions))


def execute(jobs: Sequence[Job], emit: Callable[[str], None]) -> None:
    """Run a tree and its variants.

    Lines: `{"side", "case", "outcome", "seen"}`, where ``side`` is "before" or the variant's number, and `{"side",
    "stopped"}` when a variant is done.
    """
    (one,) = jobs
    job.prepare(one)
    log = Log()

    def tell(**line: Any) -> None:
        emit(json.dumps({"job": one.number, **line}) + "\n")

    def subject() -> Subject:
        return Observed(job.subject_of(one), one.questions, log) if one.questions else job.subject_of(one)

    _compare_each(
        one.trees()[0],
        [plan.tree_of(one.after, overlay) for overlay in one.variants],
        subject,
        one.block.name,
        one.cases(),
        job.numerics_of(one),
        one.settings.timeout,
        lambda side, case, outcome: tell(side=side, case=case, outcome=outcome_to_dict(outcome), seen=log.take()),
        lambda side, why: tell(side=side, stopped=why),
    )
    tell(sources=compiled_files(), libraries=libraries())


def _compare_each(
    before: Tree,
    variants: Sequence[Tree],
    subject: Callable[[], Subject],
    block: str,
    cases: Sequence[Case],
    numerics: Numerics,
    timeout: float,
    on_outcome: Callable[[str, int, Outcome], None],
    on_stop: Callable[[str, str], None],
) -> None:
    """Run ``before`` in every case, then each variant until a case is broken. Ranks are threads, on the CPU.

    Args:
        timeout: seconds for one variant.
        on_outcome: told ("before" or the variant's number, number of the case, outcome).
        on_stop: told (the variant's number, why its process died; empty if it did not).
    """
    prepare(numerics)
    first = {"before": members_of(before, subject(), block, cases, numerics)}
    oracle = oracle_of(first, dict(spec_of(block).config), numerics)
    known = {n: o for _, n, o in run_cases(first, oracle, cases, numerics, ThreadRanks, on_outcome)}
    for number, tree in enumerate(variants):
        side = str(number)

        def judge(told: str, case: int, outcome: Outcome) -> None:
            on_outcome(told, case, outcome)
            if CaseResult("", "", 0, known[case], outcome).regression:
                raise Enough

        def work(tree: Tree = tree, side: str = side, judge: Callable[[str, int, Outcome], None] = judge) -> None:
            own = members_of(tree, subject(), block, cases, numerics)
            oracle_of({"before": own}, oracle.config, numerics)
            run_cases({side: own}, oracle, cases, numerics, ThreadRanks, judge)

        on_stop(side, _in_fork(work, timeout))


def _in_fork(work: Callable[[], None], timeout: float) -> str:
    """Do the work in a copy of this process; why the copy died, empty if it did not."""

    def done() -> int:
        work()
        return ENOUGH

    pid = fork(done)
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            with forking():
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"no answer within {timeout:g} s"
        time.sleep(_TICK)
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.WEXITSTATUS(status)
    if code == ENOUGH:
        return ""
    return "ended before its work was done" if code == 0 else f"ended with status {code}"
