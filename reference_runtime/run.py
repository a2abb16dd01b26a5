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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from reference_runtime.comm.base import CollectiveMismatch, Deadlock, Infeasible
from reference_runtime.config import guess
from reference_runtime.dense import NoDenseForm
from reference_runtime.limits import die_with, forking
from reference_runtime.ranks import Members, Numerics, Ranks, ThreadLaunch, ThreadRanks, first_error, tolerance
from reference_runtime.scenarios import TOKENS, Case, Launch
from reference_runtime.space import remember_generated
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


def consult(members: Mapping[str, Members], config: dict[str, Any], numerics: Numerics) -> Oracle:
    """Run all variants on one rank; the first one's rows are the oracle's."""
    numerics.select()
    alone = {side: variant.alone() for side, variant in members.items()}
    before = settled(alone["before"], config)
    for variant in alone.values():
        if variant is not before.members:
            variant.configure(before.members.config)
    rows: list[torch.Tensor] = []
    failure = before.failure
    for dp_rank in range(len(TOKENS) if failure is None else 0):
        (result,) = before.run(Case(_ALONE, first=dp_rank))
        if isinstance(result, Exception):
            failure = result
            break
        rows.append(result[0].cpu())
    dense = _checked(before, rows, numerics) if failure is None else (False, None, "")
    for side, variant in alone.items():
        if side != "before":
            ThreadLaunch(variant, _ALONE)  # for the shapes of its weights
    shapes = {side: dict(variant.subject.unsharded) for side, variant in alone.items()}
    for variant in alone.values():
        variant.close()
    return Oracle(before.members.config, tuple(rows), shapes, failed(failure) if failure is not None else None, dense)


_ALONE = Launch(Topology(1))


def _checked(alone: ThreadLaunch, rows: list[torch.Tensor], numerics: Numerics) -> tuple[bool, float | None, str]:
    """Compare what one rank computed with the dense form of its parameters."""
    try:
        dense = alone.members.subject.dense(alone.models[0])
    except NoDenseForm as error:
        return False, None, f"no dense form: {error}"
    inputs = [own_tokens(alone.members.contexts[0], dp_rank, len(found)) for dp_rank, found in enumerate(rows)]
    found = dense.error(inputs, rows)
    agrees = found <= max(numerics.tolerance, tolerance(dense.coarsest))
    return agrees, found, "" if agrees else f"the dense form differs by {found:.2g}"


def judge_case(ranks: Ranks, side: str, case: Case, oracle: Oracle, tolerance: float) -> Outcome:
    """Run one case of one variant and compare every rank with the oracle."""
    results = ranks.run(side, case)
    error = first_error(results)
    if error is not None:
        outcome = failed(error)
        del results, error  # with them go the frames, and what the target held in them
        gc.collect()
        return outcome
    done = [item for item in results if not isinstance(item, Exception)]
    outputs, traces = [item[0] for item in done], [item[1] for item in done]
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
        places=tuple(sorted({place for item in done for place in item[2]})),
    )


#: Makes the ranks of one world size for some variants.
Maker = Callable[[Mapping[str, Members]], Ranks]


def both(
    before: Tree, after: Tree, subject: Subject, block: str, cases: Sequence[Case], numerics: Numerics
) -> dict[str, Members]:
    """The two variants, imported. A tree that is compared with itself is one."""
    prepare(numerics)
    trees = {"before": before} if before == after else {"before": before, "after": after}
    return {side: members_of(tree, subject, block, cases, numerics) for side, tree in trees.items()}


def compare(
    variants: Mapping[str, Members],
    subject: Callable[[], Subject],
    block: str,
    cases: Sequence[Case],
    numerics: Numerics,
    make: Maker,
    on_outcome: Callable[[str, int, Outcome], None],
    on_oracle: Callable[[bool, float | None, str], None],
) -> None:
    """Run the variants in every case; tell ("before" or "after", number of the case, outcome) as they come.

    The oracle is the first variant on one rank: independent of the rewrite that is under test. Where the block has a
    dense form, that is compared with the oracle, and ``on_oracle`` told (whether they agree, error, why not).
    """
    members = {side: variant.running(subject()) for side, variant in variants.items()}

    def tell(side: str, number: int, outcome: Outcome) -> None:
        for told in (side,) if len(members) > 1 else ("before", "after"):
            on_outcome(told, number, outcome)

    oracle = oracle_of(members, dict(spec_of(block).config), numerics)
    if oracle.failure is None:
        on_oracle(*oracle.dense)
    run_cases(members, oracle, cases, numerics, make, tell)


def prepare(numerics: Numerics) -> None:
    """What a process does once before it runs anything."""
    torch.set_default_dtype(numerics.dtype)
    remember_generated()
    gc.freeze()  # what is there stays
    gc.disable()


def members_of(tree: Tree, subject: Subject, block: str, cases: Sequence[Case], numerics: Numerics) -> Members:
    """A variant's ranks for the largest world of some cases."""
    size = max(case.topology.tp for case in cases)
    return Members(tree, subject, size, dict(spec_of(block).config), numerics)


def oracle_of(members: Mapping[str, Members], config: dict[str, Any], numerics: Numerics) -> Oracle:
    """What variants on one rank say, each of which is told the configuration and the shapes that it found."""
    asked = functools.partial(consult, members, config, numerics)
    on_gpu = any(variant.on_gpu for variant in members.values())
    # a process that has used a GPU cannot fork another that uses it; else all ranks inherit what this one remembers
    oracle = answer_of_fork(asked) if on_gpu else asked()
    for side, variant in members.items():
        variant.configure(oracle.config)
        variant.subject.unsharded = oracle.shapes[side]
    return oracle


def run_cases(
    members: Mapping[str, Members],
    oracle: Oracle,
    cases: Sequence[Case],
    numerics: Numerics,
    make: Maker,
    on_outcome: Callable[[str, int, Outcome], None],
) -> list[tuple[str, int, Outcome]]:
    """Run some variants in every case; the outcomes, each also told when it is there.

    Cases of one launch stand together. Where ranks are threads, each launch has a process of its own.
    """
    numbered = list(enumerate(cases))
    found: list[tuple[str, int, Outcome]] = []
    if oracle.failure is not None:
        for number, _ in numbered:
            for side in members:
                on_outcome(side, number, oracle.failure)
                found.append((side, number, oracle.failure))
        return found
    gc.freeze()
    for size, of_size in itertools.groupby(numbered, key=lambda item: item[1].topology.tp):
        some = {side: variant.of(size) for side, variant in members.items()}
        lasting = None if make is ThreadRanks else make(some)
        for _, group in itertools.groupby(of_size, key=lambda item: item[1].launch):
            of_launch = list(group)

            def work(
                of_launch: list[tuple[int, Case]] = of_launch,
                some: Mapping[str, Members] = some,
                lasting: Ranks | None = lasting,
            ) -> list[tuple[str, int, Outcome]]:
                ranks = lasting if lasting is not None else make(some)
                done = []
                for number, case in of_launch:
                    for side in some:
                        outcome = judge_case(ranks, side, case, oracle, numerics.tolerance)
                        on_outcome(side, number, outcome)
                        done.append((side, number, outcome))
                return done

            # in a copy, the next launch finds the modules as they were imported
            found += answer_of_fork(work) if lasting is None else work()
        if lasting is not None:
            lasting.close()
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


def settled(alone: Members, config: dict[str, Any]) -> ThreadLaunch:
    """A model on one rank, with a guess for every configuration name that it needs and nobody gave a value.

    Any value will do that the model can be built with: the variants and the oracle all get the same.
    """
    config = dict(config)
    alone.configure(config)
    for _ in range(_MOST_GUESSES):
        launch = ThreadLaunch(alone, _ALONE)
        failure = launch.failure
        missing = _MISSING.search(str(failure)) if isinstance(failure, AttributeError) else None
        known, value = guess(missing.group(1)) if missing else (False, None)
        if missing is None or not known:
            break
        config[missing.group(1)] = value
        alone.configure(config)
        alone.renew(0)
    return launch


_MISSING = re.compile(r"'Config' object has no attribute '(\w+)'")
_MOST_GUESSES = 24
