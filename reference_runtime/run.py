"""Run the cases of one block, before and after. Executes target code: only ever called in a disposable process."""

from __future__ import annotations

import gc
import hashlib
import itertools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reference_runtime.absorbers import Infeasible
from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock
from reference_runtime.comm.threads import ThreadTransport, run_ranks
from reference_runtime.config import Config
from reference_runtime.kernels.base import Kernels
from reference_runtime.scenarios import Case, Launch
from reference_runtime.specs import spec_of
from reference_runtime.stubs import StubReached
from reference_runtime.subjects import Subject, digest
from reference_runtime.topology import Topology
from reference_runtime.tree import Tree
from reference_runtime.verdicts import Outcome, Status
from reference_runtime.world import RankContext

#: Errors that say what kind of outcome it is; any other error of the target is a failure.
_STATUS: tuple[tuple[type[Exception], Status], ...] = (
    (CollectiveMismatch, Status.MISMATCH),
    (Deadlock, Status.DEADLOCK),
    (StubReached, Status.UNMODELLED),
    (Infeasible, Status.INFEASIBLE),
)


@dataclass(frozen=True, slots=True)
class Numerics:
    """In which arithmetic the run computes, and how far right may be from the oracle."""

    dtype: torch.dtype
    device: torch.device
    kernels: Kernels

    @property
    def tolerance(self) -> float:
        """Relative error allowed, in the norm of a rank's output.

        Routing and norms compute in float32 whatever the model's type, so float64 runs may differ by a few float32
        roundings; narrower types by a few of their own, times the square root of the terms in a sum.
        """
        epsilon = max(torch.finfo(self.dtype).eps, torch.finfo(torch.float32).eps)
        return 64 * epsilon


class Ranks:
    """All ranks of one launch of one tree, in threads; built once, run for many cases."""

    def __init__(
        self, tree: Tree, subject: Subject, launch: Launch, config: dict[str, Any], numerics: Numerics
    ) -> None:
        self.size = launch.topology.tp
        self.subject = subject
        self._contexts: list[RankContext] = []
        self._models: list[Any] = []
        self.failure: Exception | None = None

        def build(transport: Any) -> tuple[RankContext, Any]:
            context = RankContext(
                tree, launch, transport, numerics.kernels, numerics.dtype, numerics.device,
                Config(numerics.dtype, config),
            )  # fmt: skip
            context.start()
            return context, subject.build(context)

        built = run_ranks(self.size, build)
        self.failure = first_error(built)
        if self.failure is None:
            self._contexts = [item[0] for item in built if not isinstance(item, Exception)]
            self._models = [item[1] for item in built if not isinstance(item, Exception)]

    def run(self, case: Case) -> list[tuple[torch.Tensor, list[str]] | Exception]:
        """Each rank's (own rows, trace), or what ended it."""
        if self.failure is not None:
            return [self.failure] * self.size

        def one(transport: Any) -> tuple[torch.Tensor, list[str]]:
            context = self._contexts[transport.rank]
            assert isinstance(context.transport, ThreadTransport)
            context.transport.hub = transport.hub  # a new hub each time: a failed run leaves nothing behind
            with torch.no_grad():
                output = self.subject.run(context, self._models[transport.rank], case)
            return output, [str(event) for event in context.trace.events]

        return run_ranks(self.size, one)

    def close(self) -> None:
        """Forget the modules."""
        for context in self._contexts:
            context.close()
        self._contexts, self._models = [], []


def first_error(results: Sequence[Any]) -> Exception | None:
    """The error that came first in rank order and was not merely caused by another rank's."""
    errors = [item for item in results if isinstance(item, Exception)]
    causes = [error for error in errors if not isinstance(error, Abandoned)]
    return next(iter(causes or errors), None)


def failed(error: Exception) -> Outcome:
    """The outcome of a case that an error ended."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return Outcome(status, detail=str(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = next((f"{f.filename.rpartition('/')[2]}:{f.lineno}: " for f in reversed(frames)), "")
    text = str(error).strip().splitlines()
    return Outcome(Status.FAILED, detail=f"{where}{type(error).__name__}: {text[0] if text else ''}"[:300])


class Oracle:
    """What each attention-DP rank's tokens become on one rank, where nothing is sharded and nothing is reduced."""

    def __init__(self, tree: Tree, subject: Subject, config: dict[str, Any], numerics: Numerics) -> None:
        self._ranks = Ranks(tree, subject, Launch(Topology(1)), config, numerics)
        self._rows: dict[int, torch.Tensor] = {}
        self.numerics = numerics

    @property
    def failure(self) -> Exception | None:
        return self._ranks.failure

    def rows(self, dp_rank: int) -> torch.Tensor:
        """The rows of that attention-DP rank, [rows, hidden]. Raises what the model raises."""
        if dp_rank not in self._rows:
            (result,) = self._ranks.run(Case(Launch(Topology(1)), first=dp_rank))
            if isinstance(result, Exception):
                raise result
            self._rows[dp_rank] = result[0]
        return self._rows[dp_rank]


def judge_case(ranks: Ranks, case: Case, oracle: Oracle) -> Outcome:
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
        expected = oracle.rows(dp_rank).double()
        got = output.double()
        if got.shape != expected.shape:
            return Outcome(Status.WRONG, detail=f"rank {rank}: shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        norm = expected.norm().clamp_min(1e-30)
        relative = float((got - expected).norm() / norm)
        if not relative <= worst:  # also for NaN
            worst, scale = relative, float((got * expected).sum() / norm.square())
    right = worst <= oracle.numerics.tolerance
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
    on_outcome: Callable[[str, int, Outcome], None],
) -> None:
    """Run both variants in every case; tell ("before" or "after", number of the case, outcome) as they come.

    The oracle is the first variant on one rank: independent of the rewrite that is under test.
    """
    torch.set_default_dtype(numerics.dtype)
    gc.freeze()  # what is there stays; each launch's modules are one big cycle, collected when it is done
    gc.disable()
    config = dict(spec_of(block).config)
    sides = {"before": (before, subject()), "after": (after, subject())}
    oracles = {side: Oracle(tree, s, config, numerics) for side, (tree, s) in sides.items()}
    oracle = oracles["before"]
    numbered = list(enumerate(cases))
    for launch, group in itertools.groupby(numbered, key=lambda item: item[1].launch):
        ranks = {side: Ranks(tree, s, launch, config, numerics) for side, (tree, s) in sides.items()}
        for number, case in group:
            for side in sides:
                on_outcome(side, number, _outcome(ranks[side], case, oracle))
        for variant in ranks.values():
            variant.close()
        ranks.clear()
        gc.collect()


def _outcome(ranks: Ranks, case: Case, oracle: Oracle) -> Outcome:
    if oracle.failure is not None:
        return failed(oracle.failure)
    try:
        return judge_case(ranks, case, oracle)
    except Exception as error:  # the oracle itself: on one rank the model does not run
        return failed(error)
