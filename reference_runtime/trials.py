"""One variant against many: what the others are compared with is run once. Executes target code, like `run`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

from reference_runtime.limits import forking
from reference_runtime.ranks import Numerics, ThreadRanks
from reference_runtime.run import ENOUGH, Enough, fork, members_of, oracle_of, prepare, run_cases
from reference_runtime.scenarios import Case
from reference_runtime.specs import spec_of
from reference_runtime.subjects import Subject
from reference_runtime.tree import Tree
from reference_runtime.verdicts import CaseResult, Outcome

_TICK = 0.005


def compare_each(
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
