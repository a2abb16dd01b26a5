"""Ranks as threads of one process: deterministic, and a mismatch or a deadlock is named at once."""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock, Transport, listed, sized

T = TypeVar("T")


@dataclass(frozen=True)
class _Call:
    """What one rank waits for."""

    ranks: tuple[int, ...]
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    detail: tuple[int, ...]
    tensor: torch.Tensor

    @property
    def must_agree(self) -> tuple[int, ...]:
        """The part of the shape that all ranks share: a gather with given sizes may differ in rows."""
        return self.shape[1:] if self.op == "all_gather" and self.detail else self.shape

    def describe(self, rank: int) -> str:
        return f"rank {rank} in {self.op} of {sized(self.shape)} over {listed(self.ranks)}"


class ThreadHub:
    """Where the ranks meet, and whose turn it is: one runs until it has to wait, then the next.

    Threads that compete for the interpreter spend more time on that than on the work. Taking turns, they also do the
    same in the same order each time. One hub per run of ``world_size`` threads.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._waiting: dict[int, _Call] = {}
        self._results: dict[int, list[torch.Tensor]] = {}
        #: who could go on, and does so in this order
        self._ready = deque(range(world_size))
        self._turns = [_locked() for _ in range(world_size)]
        self._over = _locked()
        self._gone: list[int] = []
        self._failure: Exception | None = None

    def begin(self) -> None:
        """Let the first rank run."""
        self._next()

    def wait(self) -> None:
        """Until all ranks are done."""
        self._over.acquire()

    def turn(self, rank: int) -> None:
        """Wait until the rank may run."""
        self._turns[rank].acquire()

    def meet(self, rank: int, call: _Call) -> list[torch.Tensor]:
        """Wait for the others of the group; everybody's tensor in group order.

        Raises:
            CollectiveMismatch: the group met in different collectives.
            Deadlock: somebody of the group will not come.
            Abandoned: the run failed elsewhere meanwhile.
        """
        self._check()
        self._waiting[rank] = call
        self._settle(call.ranks)
        if rank in self._ready:  # it came last
            self._ready.remove(rank)
        else:
            self._next()
            self.turn(rank)
        if rank not in self._results:
            self._check()
        return self._results.pop(rank)

    def leave(self, rank: int) -> None:
        """The rank is done, by return or by an exception."""
        self._gone.append(rank)
        self._next()

    def abandon(self) -> None:
        """The rank whose turn it is failed: so will the others where they wait."""
        if self._failure is None:
            self._fail(Abandoned())

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _next(self) -> None:
        """Whoever runs stops: let the next rank run. If all wait, nobody can go on."""
        if not self._ready and self._waiting:
            stuck = "; ".join(c.describe(rank) for rank, c in sorted(self._waiting.items()))
            done = f"; finished: {listed(sorted(self._gone))}" if self._gone else ""
            self._fail(Deadlock(f"nobody can go on: {stuck}{done}"))
        if self._ready:
            self._turns[self._ready.popleft()].release()
        elif len(self._gone) == self.world_size:
            self._over.release()

    def _settle(self, ranks: tuple[int, ...]) -> None:
        """Serve a group if all of it are there."""
        calls = {rank: self._waiting[rank] for rank in ranks if rank in self._waiting}
        if len(calls) < len(ranks) or any(c.ranks != ranks for c in calls.values()):
            return
        if len({(c.op, c.must_agree, c.dtype, c.detail) for c in calls.values()}) > 1:
            self._fail(CollectiveMismatch.of({rank: (c.op, c.shape) for rank, c in calls.items()}))
            return
        tensors = [c.tensor for c in calls.values()]
        for rank in ranks:
            del self._waiting[rank]
            self._results[rank] = tensors
            self._ready.append(rank)

    def _fail(self, failure: Exception) -> None:
        """Whoever waits goes on, to learn of the failure."""
        self._failure = failure
        self._ready.extend(self._waiting)
        self._waiting.clear()


class ThreadTransport(Transport):
    """One rank's end of a hub."""

    def __init__(self, hub: ThreadHub, rank: int) -> None:
        self.hub, self.rank, self.world_size = hub, rank, hub.world_size

    def _meet(
        self, op: str, tensor: torch.Tensor, ranks: Sequence[int], detail: Sequence[int] = ()
    ) -> list[torch.Tensor]:
        # a copy: the sender may go on and write into its tensor before the others have read it
        call = _Call(tuple(ranks), op, tuple(tensor.shape), tensor.dtype, tuple(detail), tensor.detach().clone())
        return self.hub.meet(self.rank, call)

    def all_reduce(self, tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
        return _sum(self._meet("all_reduce", tensor, ranks))

    def all_gather(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int] | None) -> list[torch.Tensor]:
        return [t.clone() for t in self._meet("all_gather", tensor, ranks, sizes or ())]

    def reduce_scatter(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        total = _sum(self._meet("reduce_scatter", tensor, ranks, sizes))
        mine = list(ranks).index(self.rank)
        return total.narrow(0, sum(sizes[:mine]), sizes[mine]).clone()

    def broadcast(self, tensor: torch.Tensor, ranks: Sequence[int], source: int) -> torch.Tensor:
        return self._meet("broadcast", tensor, ranks, (source,))[source].clone()


def _sum(tensors: list[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def _locked() -> threading.Lock:
    """What one thread waits for until another releases it."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def run_ranks(world_size: int, work: Callable[[ThreadTransport], T]) -> list[T | Exception]:
    """Run ``work`` once per rank; each rank's result or the exception that ended it."""
    hub = ThreadHub(world_size)
    outcomes: list[T | Exception] = [Abandoned()] * world_size

    def one(rank: int) -> None:
        hub.turn(rank)
        try:
            outcomes[rank] = work(ThreadTransport(hub, rank))
        except (Exception, SystemExit) as error:
            outcomes[rank] = error if isinstance(error, Exception) else RuntimeError("the target called sys.exit()")
            hub.abandon()
        finally:
            hub.leave(rank)

    if world_size == 1:  # in this thread: a process that has others, even ending ones, cannot be forked safely
        hub.begin()
        one(0)
        return outcomes
    for rank in range(world_size):
        _thread.start_new_thread(one, (rank,))
    hub.begin()
    hub.wait()
    return outcomes
