"""What a case did before and after, and what that says. Plain data: no torch, so that reports need none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

#: What a trace calls a partial output that a block leaves to the layer around it.
LEFT = "left_to_layer"
#: A wrong result is called a multiple of the right one up to this relative rest: more than bfloat16 rounds away.
_MULTIPLE = 0.1


class Status(str, Enum):
    """What one variant of a file did in one case."""

    RIGHT = "right"  #: every rank's output equals the oracle's
    WRONG = "wrong"  #: it does not
    MISMATCH = "mismatch"  #: the ranks of a group met in different collectives
    DEADLOCK = "deadlock"  #: the ranks wait for each other for ever
    FAILED = "failed"  #: the code raised an error
    UNMODELLED = "unmodelled"  #: it needs a part of the engine that has no implementation here
    INFEASIBLE = "infeasible"  #: the engine does not allow this configuration


class Verdict(str, Enum):
    """What the two outcomes of a case say together."""

    EQUIVALENT = "EQUIVALENT"  #: the same output bit for bit, by the same collectives
    REORDERED = "REORDERED"  #: right before and after, by other collectives or in another order of summation
    CORRECTED = "CORRECTED"  #: wrong before, right after
    BROKEN = "BROKEN"  #: right before, wrong after
    BOTH_WRONG = "BOTH_WRONG"  #: wrong before and after
    MISMATCH = "MISMATCH"  #: afterwards the ranks of a group meet in different collectives
    DEADLOCK = "DEADLOCK"  #: afterwards the ranks wait for each other for ever
    UNMODELLED = "UNMODELLED"  #: could not be judged; the detail names what is missing
    INFEASIBLE = "INFEASIBLE"  #: no such configuration


@dataclass(frozen=True, slots=True)
class Outcome:
    """One variant of a file in one case.

    Attributes:
        error: ||output - oracle|| / ||oracle|| of the worst rank.
        scale: <output, oracle> / <oracle, oracle> of that rank: 2.0 for a double reduce over two ranks.
        digest: of all ranks' output bits.
        trace: the collectives of rank 0, in order.
        traces: digest of all ranks' collectives.
        places: `path:line` of the calls in model files that led to a collective, on any rank.
        detail: what was missing, which collectives met, which error was raised.
    """

    status: Status
    error: float | None = None
    scale: float | None = None
    digest: str = ""
    trace: tuple[str, ...] = ()
    traces: str = ""
    places: tuple[str, ...] = ()
    detail: str = ""

    @property
    def partial(self) -> bool:
        """The block left the sum to the layer around it."""
        return any(event.startswith(f"{LEFT}(") for event in self.trace)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case of one block, before and after."""

    level: str
    case: str
    world_size: int
    before: Outcome
    after: Outcome

    @property
    def verdict(self) -> Verdict:
        return judge(self.before, self.after)

    @property
    def regression(self) -> bool:
        """Right before, and not right any more for a reason that lies in the file."""
        bad = (Verdict.BROKEN, Verdict.MISMATCH, Verdict.DEADLOCK)
        return self.before.status is Status.RIGHT and self.verdict in bad

    @property
    def detail(self) -> str:
        """The reason behind the verdict, in a line."""
        verdict, before, after = self.verdict, self.before, self.after
        if verdict is Verdict.CORRECTED:
            return f"before: {describe(before)}"
        if verdict is Verdict.BOTH_WRONG:
            return f"before: {describe(before)}; after: {describe(after)}"
        if verdict in (Verdict.BROKEN, Verdict.MISMATCH, Verdict.DEADLOCK):
            return f"after: {describe(after)}"
        if verdict in (Verdict.UNMODELLED, Verdict.INFEASIBLE):
            return after.detail or before.detail or _other_owner(after)
        if verdict is Verdict.REORDERED:
            return f"{' '.join(before.trace) or 'no collective'} -> {' '.join(after.trace) or 'no collective'}"
        return ""


def describe(outcome: Outcome) -> str:
    """An outcome in a few words."""
    if outcome.status is Status.WRONG and outcome.scale is not None and outcome.error is not None:
        error = f"relative error {outcome.error:.2g}"
        # What is left of the error when the best multiple of the right result is taken away.
        rest = math.sqrt(max(0.0, outcome.error**2 - (outcome.scale - 1) ** 2))
        return f"scaled by {outcome.scale:.2f} ({error})" if rest < _MULTIPLE * abs(outcome.scale) else error
    return f"{outcome.status.value}: {outcome.detail}" if outcome.detail else outcome.status.value


def _other_owner(after: Outcome) -> str:
    who = "leaves a partial to the layer" if after.partial else "sums its output itself"
    return f"the block now {who}: whether that is right is decided at layer level"


def judge(before: Outcome, after: Outcome) -> Verdict:
    """The verdict on a case. What one side could not show is never called equivalent, corrected or broken."""
    statuses = {before.status, after.status}
    if Status.INFEASIBLE in statuses:
        return Verdict.INFEASIBLE
    if Status.UNMODELLED in statuses or statuses == {Status.FAILED}:
        return Verdict.UNMODELLED
    if after.status is Status.RIGHT:
        if before.status is not Status.RIGHT:
            return Verdict.CORRECTED
        if before.partial != after.partial:
            return Verdict.UNMODELLED  # another owner of the sum: the layer must say so, too
        same = before.digest == after.digest and before.traces == after.traces
        return Verdict.EQUIVALENT if same else Verdict.REORDERED
    if after.status is Status.MISMATCH:
        return Verdict.MISMATCH
    if after.status is Status.DEADLOCK:
        return Verdict.DEADLOCK
    return Verdict.BROKEN if before.status is Status.RIGHT else Verdict.BOTH_WRONG


@dataclass(frozen=True, slots=True)
class OracleNote:
    """What the right result of a level is known from.

    Attributes:
        error: relative difference between one rank of BEFORE and a dense form that runs none of its code.
        dense: the two agree. Otherwise one rank of BEFORE alone is the oracle, and ``detail`` says why.
    """

    level: str
    dense: bool
    error: float | None = None
    detail: str = ""

    def __str__(self) -> str:
        if self.dense:
            return f"dense, error {self.error:.1g}"
        return f"one rank of BEFORE ({self.detail})" if self.detail else "one rank of BEFORE"


@dataclass(frozen=True, slots=True)
class Reduction:
    """A call in the block, or in the layer around it, that sums over ranks."""

    path: str
    line: int
    end_line: int
    function: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} in {self.function}"

    def at(self, place: str) -> bool:
        """Whether a place lies in the call."""
        path, _, line = place.rpartition(":")
        return path == self.path and self.line <= int(line) <= self.end_line


@dataclass(frozen=True, slots=True)
class ModelReport:
    """All cases of one block.

    Attributes:
        problem: why the run of it ended early, or could not begin.
        reductions: of the file after; those that no case reached are not verified.
    """

    model: str
    path: str
    cases: tuple[CaseResult, ...] = ()
    problem: str = ""
    seconds: float = 0.0
    oracles: tuple[OracleNote, ...] = ()
    reductions: tuple[Reduction, ...] = ()

    @property
    def unreached(self) -> list[Reduction]:
        """The reductions that no case has made: nothing is known of them."""
        places = {place for case in self.cases for place in case.after.places}
        return [one for one in self.reductions if not any(map(one.at, places))]

    def oracle(self, level: str) -> OracleNote | None:
        """Of that level; None if the run did not get that far."""
        return next((note for note in self.oracles if note.level == level), None)

    @property
    def judged(self) -> int:
        return sum(c.verdict not in (Verdict.UNMODELLED, Verdict.INFEASIBLE) for c in self.cases)

    @property
    def counts(self) -> Counter[Verdict]:
        return Counter(c.verdict for c in self.cases)


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run of `moe-lint verify`."""

    before: str
    after: str
    settings: Mapping[str, Any]
    models: tuple[ModelReport, ...]
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1: a case is broken; 2: a block could not be judged at all or ended early; else 0."""
        if any(case.regression for model in self.models for case in model.cases):
            return 1
        return 2 if not self.models or any(model.problem or not model.judged for model in self.models) else 0


def outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """For JSON; `outcome_from_dict` is the way back."""
    return {**asdict(outcome), "status": outcome.status.value}


def outcome_from_dict(data: Mapping[str, Any]) -> Outcome:
    """The outcome that `outcome_to_dict` wrote."""
    values = dict(data)
    lists = {name: tuple(values[name]) for name in ("trace", "places")}
    return Outcome(**{**values, **lists, "status": Status(values["status"])})
