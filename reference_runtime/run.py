"""Run the cases of one block, before and after. Executes target code: only ever called in a disposable process."""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import os
import pickle
import re
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from reference_runtime.comm.base import CollectiveMismatch, Deadlock, Infeasible
from reference_runtime.config import guess
from reference_runtime.dense import NoDenseForm
from reference_runtime.limits import die_with, forking
from reference_runtime.ranks import Members, Numerics, Ranks, ThreadRanks, first_error, tolerance
from reference_runtime.scenarios import TOKENS, Case, Launch
from reference_runtime.specs import spec_of
from reference_runtime.stubs import StubReached
from reference_runtime.subjects import Subject, digest, own_tokens
from reference_runtime.topology import Topology
from reference_runtime.tree import Tree
from reference_runtime.verdicts import Outcome, Status

T = TypeVar("T")

#: Errors that say what kind of outcome it is; any other error of the target is a failure.
_STATUS: tuple[tuple[type[Exception], Status], ...] = (
    (CollectiveMismatch, Status.MISMATCH),
    (Deadlock, Status.DEADLOCK),
    (StubReached, Status.UNMODELLED),
    (Infeasible, Status.INFEASIBLE),
)


def failed(error: Exception) -> Outcome:
    """The outcome of a case that an error ended."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return Outcome(status, detail=str(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f"{f.filename.rpartition('/')[2]}:{f.lineno}: " for f in reversed(frames)), "")
    text = str(error).strip().splitlines()
    return Outcome(Status.FAILED, detail=f"{where}{type(error).__name__}: {text[0] if text else ''}"[:300])


@dataclass(frozen=True, slots=True)
class Oracle:
    """What each attention-DP rank's tokens become on one rank, where nothing is sharded and nothing is reduced.

    Attributes:
        config: the values that the model was built with; all ranks of both variants get the same.
        rows: [rows, hidden] of each attention-DP rank, on the CPU.
        shapes: variant -> shapes of the weights without a loader, as built on one rank.
        failure: why there are no rows.
        dense: (whether the block's dense form agrees, relative error or None, why it does not or there is none).
    """

    config: dict[str, Any]
    rows: tuple[torch.Tensor, ...]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    failure: Outcome | None
    dense: tuple[bool, float | None, str] = (False, None, "")


def consult(sides: dict[str, tuple[Tree, Subject]], config: dict[str, Any], numerics: Numerics) -> Oracle:
    """Run both variants on one rank; the first one's rows are the oracle's."""
    numerics.select()
    config = settled(*sides["before"], config, numerics)
    rows: list[torch.Tensor] = []
    failure: Exception | None = None
    dense: tuple[bool, float | None, str] = (False, None, "")
    for side, (tree, subject) in sides.items():
        ranks = _alone(tree, subject, config, numerics)
        if side == "before":
            failure = ranks.failure
            for dp_rank in range(len(TOKENS) if failure is None else 0):
                (result,) = ranks.run(Case(Launch(Topology(1)), first=dp_rank))
                if isinstance(result, Exception):
                    failure = result
                    break
                rows.append(result[0].cpu())
            if failure is None:
                dense = _checked(subject, ranks, rows, numerics)
    shapes = {side: dict(subject.unsharded) for side, (_, subject) in sides.items()}
    return Oracle(config, tuple(rows), shapes, failed(failure) if failure is not None else None, dense)


def _checked(
    subject: Subject, ranks: ThreadRanks, rows: list[torch.Tensor], numerics: Numerics
) -> tuple[bool, float | None, str]:
    """Compare what one rank computed with the dense form of its parameters."""
    try:
        dense = subject.dense(ranks.models[0])
    except NoDenseForm as error:
        return False, None, f"no dense form: {error}"
    inputs = [own_tokens(ranks.members.contexts[0], dp_rank, len(found)) for dp_rank, found in enumerate(rows)]
    found = dense.error(inputs, rows)
    agrees = found <= max(numerics.tolerance, tolerance(dense.coarsest))
    return agrees, found, "" if agrees else f"the dense form differs by {found:.2g}"


def _alone(tree: Tree, subject: Subject, config: dict[str, Any], numerics: Numerics) -> ThreadRanks:
    return ThreadRanks(Members(tree, subject, 1, config, numerics), Launch(Topology(1)))


def judge_case(ranks: Ranks, case: Case, oracle: Oracle, tolerance: float) -> Outcome:
    """Run one case and compare every rank with the oracle."""
    results = ranks.run(case)
    error = first_error(results)
    if error is not None:
        outcome = failed(error)
        del results, error  # with them go the frames, and what the target held in them
        gc.collect()
        return outcome
    outputs = [item[0] for item in results if not isinstance(item, Exception)]
    traces = [item[1] for item in results if not isinstance(item, Exception)]
    worst, scale = 0.0, 1.0
    for rank, output in enumerate(outputs):
        dp_rank = case.topology.dp_rank(rank)
        expected = oracle.rows[dp_rank].double()
        got = output.double().cpu()
        if got.shape != expected.shape:
            return Outcome(Status.WRONG, detail=f"rank {rank}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        norm = expected.norm().clamp_min(1e-30)
        relative = float((got - expected).norm() / norm)
        if not relative <= worst:  # also for NaN
            worst, scale = relative, float((got * expected).sum() / norm.square())
    right = worst <= tolerance
    return Outcome(
        Status.RIGHT if right else Status.WRONG,
        error=worst,
        scale=scale,
        digest=digest(outputs),
        trace=tuple(traces[0]),
        traces=hashlib.sha256(repr(traces).encode()).hexdigest()[:16],
    )


def compare(
    before: Tree,
    after: Tree,
    subject: Callable[[], Subject],
    block: str,
    cases: Sequence[Case],
    numerics: Numerics,
    make: Callable[[Members, Launch], Ranks],
    on_outcome: Callable[[str, int, Outcome], None],
    on_oracle: Callable[[bool, float | None, str], None],
) -> None:
    """Run both variants in every case; tell ("before" or "after", number of the case, outcome) as they come.

    The oracle is the first variant on one rank: independent of the rewrite that is under test. Where the block has a
    dense form, that is compared with the oracle, and ``on_oracle`` told (whether they agree, error, why not).
    """
    prepare(numerics)
    sides = {"before": (before, subject()), "after": (after, subject())}
    forked = numerics.device.type != "cpu"  # a process that has used a GPU cannot fork another that uses it
    asked = functools.partial(consult, sides, dict(spec_of(block).config), numerics)
    oracle = answer_of_fork(asked) if forked else asked()
    for side, shapes in oracle.shapes.items():
        sides[side][1].unsharded = shapes
    if oracle.failure is None:
        on_oracle(*oracle.dense)
    run_cases(sides, oracle, cases, numerics, make, on_outcome)


def prepare(numerics: Numerics) -> None:
    """What a process does once before it runs anything."""
    torch.set_default_dtype(numerics.dtype)
    gc.freeze()  # what is there stays; each launch's modules are one big cycle, collected when it is done
    gc.disable()


def run_cases(
    sides: dict[str, tuple[Tree, Subject]],
    oracle: Oracle,
    cases: Sequence[Case],
    numerics: Numerics,
    make: Callable[[Members, Launch], Ranks],
    on_outcome: Callable[[str, int, Outcome], None],
) -> list[tuple[str, int, Outcome]]:
    """Run some variants in every case; the outcomes, each also told when it is there.

    Cases of one launch stand together. Where ranks are threads, each launch has a process of its own.
    """
    numbered = list(enumerate(cases))
    found: list[tuple[str, int, Outcome]] = []
    if oracle.failure is not None:
        for number, _ in numbered:
            for side in sides:
                on_outcome(side, number, oracle.failure)
                found.append((side, number, oracle.failure))
        return found
    for size, of_size in itertools.groupby(numbered, key=lambda item: item[1].topology.tp):
        members = {side: Members(tree, s, size, oracle.config, numerics) for side, (tree, s) in sides.items()}
        for launch, group in itertools.groupby(of_size, key=lambda item: item[1].launch):
            of_launch = list(group)

            def work(
                launch: Launch = launch,
                of_launch: list[tuple[int, Case]] = of_launch,
                members: dict[str, Members] = members,
            ) -> list[tuple[str, int, Outcome]]:
                ranks = {side: make(m, launch) for side, m in members.items()}
                done = []
                for number, case in of_launch:
                    for side, variant in ranks.items():
                        outcome = judge_case(variant, case, oracle, numerics.tolerance)
                        on_outcome(side, number, outcome)
                        done.append((side, number, outcome))
                for variant in ranks.values():
                    variant.close()
                return done

            # in a copy, the next launch finds the modules as they were imported
            found += answer_of_fork(work) if make is ThreadRanks else work()
        for variant in members.values():
            variant.close()
        gc.collect()
    return found


class Enough(Exception):
    """Whoever is told of the outcomes needs no more of them."""


#: The exit status of a process that had enough.
ENOUGH = 64


def fork(work: Callable[[], int]) -> int:
    """Do ``work`` in a copy of this process, which dies with it; the copy's number.

    The copy ends with the status that ``work`` returns, with `ENOUGH` where it had enough, with 70 where it failed.
    """
    parent = os.getpid()
    with forking():
        pid = os.fork()
    if pid == 0:
        die_with(parent)
        code = 70
        try:
            torch.set_num_threads(1)  # makes the copy's thread pool anew while there is one thread
            code = work()
        except Enough:
            code = ENOUGH
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def answer_of_fork(work: Callable[[], T]) -> T:
    """What ``work`` returns in a copy of this process. If the copy dies, so does this process, likewise."""
    reader, writer = os.pipe()

    def tell() -> int:
        os.close(reader)
        gc.freeze()  # what a failed case leaves is all that there is to collect
        with os.fdopen(writer, "wb") as stream:
            pickle.dump(work(), stream)
        return 0

    pid = fork(tell)
    os.close(writer)
    data, status = _said(pid, reader)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        with forking():
            os.kill(os.getpid(), os.WTERMSIG(status))
    if not data or os.WEXITSTATUS(status) != 0:
        os._exit(os.WEXITSTATUS(status))
    answer: T = pickle.loads(data)
    return answer


def _said(pid: int, reader: int) -> tuple[bytes, int]:
    """What a process writes until it ends, and its status. What it leaves behind may hold the pipe open."""
    data, status, over = b"", 0, False
    os.set_blocking(reader, False)
    while True:
        try:
            more = os.read(reader, 1 << 20)
        except BlockingIOError:
            if over:
                break
            select.select([reader], [], [], 0.05)
            ended, status = os.waitpid(pid, os.WNOHANG)
            over = ended != 0
            continue
        data += more
        if not more:
            break
    os.close(reader)
    return data, status if over else os.waitpid(pid, 0)[1]


def settled(tree: Tree, subject: Subject, config: dict[str, Any], numerics: Numerics) -> dict[str, Any]:
    """The configuration with a guess for every name that the model needs and nobody gave a value.

    Any value will do that the model can be built with: the variants and the oracle all get the same.
    """
    config = dict(config)
    for _ in range(_MOST_GUESSES):
        failure = _alone(tree, subject, config, numerics).failure
        missing = _MISSING.search(str(failure)) if isinstance(failure, AttributeError) else None
        known, value = guess(missing.group(1)) if missing else (False, None)
        if missing is None or not known:
            return config
        config[missing.group(1)] = value
    return config


_MISSING = re.compile(r"'Config' object has no attribute '(\w+)'")
_MOST_GUESSES = 24
