"""Ranks that torchrun started: one worker process each, joined by torchrun's own store.

Every rank makes the same plan and runs the same cases in the same order. For each job a rank's worker forks a confined
process, and that one forks the process which holds the rank's model and joins the group. What a rank found in a case it
tells all others through the store, so that all of them know, and do, the same. The worker runs no target code: it ends
a job on all ranks when it ended on one.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from reference_runtime.plan import Job, Member
from reference_runtime.processes import RankProcess, decoded, encoded, lost
from reference_runtime.ranks import Members, Numerics, Result
from reference_runtime.scenarios import Case

#: Seconds in which another rank answers: the longest case, and a start from nothing.
_PATIENCE = datetime.timedelta(seconds=180)


def connect(prefix: str, host: bool = False) -> Any:
    """A connection to torchrun's store of its own; forked processes may not share one.

    Args:
        host: keep the store, should torchrun leave that to the ranks.
    """
    environment = os.environ
    own = host and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    store = TCPStore(address, port, is_master=own, timeout=_PATIENCE, wait_for_workers=False)
    return PrefixStore(f"moe-lint/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}/{prefix}", store)


class Peers:
    """The workers of all ranks, as one of them sees the others."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._others = [rank for rank in range(member.size) if rank != member.rank]
        self._store = connect("workers", host=member.rank == 0)

    def agree(self, jobs: Sequence[Job]) -> None:
        """Make sure that all ranks see the same trees and are asked the same. Raises ValueError."""
        mine = _digest(jobs)
        self._store.set(f"plan/{self._member.rank}", mine)
        first = self._store.get("plan/0").decode()
        if first != mine:
            raise ValueError(f"rank {self._member.rank} sees other trees than rank 0, or was asked something else")

    def lost(self, job: int) -> str:
        """Why another rank's part of a job ended before its time; empty: it did not."""
        for rank in self._others:
            if self._store.check([f"ended/{job}/{rank}"]):
                reason = self._store.get(f"ended/{job}/{rank}").decode()
                if reason:
                    return f"rank {rank}: {reason}"
        return ""

    def ended(self, job: int, reason: str, timeout: float) -> str:
        """Tell the others how a job ended here; how it ended on the first rank where it did not end well."""
        self._store.set(f"ended/{job}/{self._member.rank}", reason)
        reasons = {self._member.rank: reason}
        deadline = time.monotonic() + timeout
        for rank in self._others:
            key = f"ended/{job}/{rank}"
            while not self._store.check([key]) and time.monotonic() < deadline:
                time.sleep(0.02)
            here = self._store.check([key])
            reasons[rank] = self._store.get(key).decode() if here else "no answer"
        causes = {rank: why for rank, why in sorted(reasons.items()) if why and not why.startswith("rank ")}
        return next((f"rank {rank}: {why}" for rank, why in causes.items()), next(filter(None, reasons.values()), ""))


def _digest(jobs: Sequence[Job]) -> str:
    state = hashlib.sha256()
    for job in jobs:
        data = job.to_dict()
        data["settings"] = {**data["settings"], "member": None}
        state.update(json.dumps(data, sort_keys=True).encode())
    for folder in sorted({folder for job in jobs for folder in (job.before, job.after)}):
        for path in sorted(Path(folder).rglob("*.py")):
            state.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


class MemberRanks:
    """All ranks, of which this process holds one: in one process for all launches. See `ranks.Ranks`."""

    def __init__(self, exchange: Exchange, members: Mapping[str, Members]) -> None:
        self._exchange, self._members = exchange, members
        self._own: RankProcess | None = None

    def run(self, side: str, case: Case) -> Sequence[Result]:
        members = self._members[side]
        failure, patience = members.failure, members.patience(first=self._own is None)
        if self._own is None and failure is None:
            join = functools.partial(self._exchange.join, f"group/{self._exchange.fresh()}")
            self._own = RankProcess(self._members, self._exchange.member.rank, join)
        if failure is not None or self._own is None:
            message = encoded(failure or RuntimeError("not built"))
        else:
            self._own.ask(side, case)
            message = self._own.receive(time.monotonic() + patience)
        results = [decoded(data) for data in self._exchange.all(message)]
        if any(map(lost, results)):
            self.close()  # on all ranks: they know the same
        return results

    def close(self) -> None:
        if self._own is not None:
            self._own.end()
            self._own = None


class Exchange:
    """What the ranks' job processes tell each other, in order: they all take the same steps."""

    def __init__(self, member: Member, backend: str, numerics: Numerics, job: int) -> None:
        self.member, self._backend, self._numerics = member, backend, numerics
        self._job, self._step = job, 0
        self._store = connect("jobs")

    def fresh(self) -> str:
        """A name that nobody had before, the same on all ranks."""
        return f"{self._job}/{self._step}"

    def all(self, message: bytes) -> list[bytes]:
        """Everybody's message, in rank order. Raises RuntimeError: somebody said nothing."""
        key = f"{self._job}/{self._step}"
        self._step += 1
        self._store.set(f"{key}/{self.member.rank}", message)
        return [bytes(self._store.get(f"{key}/{rank}")) for rank in range(self.member.size)]

    def join(self, name: str) -> None:
        """Make this process, a new one, a rank of a group of that name."""
        self._numerics.select()
        dist.init_process_group(self._backend, store=connect(name), rank=self.member.rank, world_size=self.member.size)
