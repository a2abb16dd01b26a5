"""Ranks as threads of one process: deterministic, and a mismatch or a deadlock is named at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock, Transport

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
        shape = "x".join(map(str, self.shape))
        return f"rank {rank} in {self.op} of {shape} over ranks {list(self.ranks)}"


class ThreadHub:
    """Where the ranks meet. One hub per run of ``world_size`` threads."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._condition = threading.Condition()
        self._waiting: dict[int, _Call] = {}
        self._results: dict[int, list[torch.Tensor]] = {}
        self._alive = set(range(world_size))
        self._failure: Exception | None = None

    def meet(self, rank: int, call: _Call) -> list[torch.Tensor]:
        """Wait for the others of the group; everybody's tensor in group order.

        Raises:
            CollectiveMismatch: the group met in different collectives.
            Deadlock: somebody of the group will not come.
            Abandoned: the run failed elsewhere meanwhile.
        """
        with self._condition:
            self._check()
            self._waiting[rank] = call
            self._settle()
            while rank not in self._results:
                self._check()
                self._condition.wait()
            return self._results.pop(rank)

    def leave(self, rank: int) -> None:
        """The rank is done, by return or by an exception."""
        with self._condition:
            self._alive.discard(rank)
            self._settle()

    def abandon(self) -> None:
        """Wake everybody up: a rank failed."""
        with self._condition:
            if self._failure is None:
                self._failure = Abandoned()
            self._condition.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _settle(self) -> None:
        """Serve every group that is complete; find out that nobody can go on."""
        if self._failure is not None:
            return
        for rank, call in list(self._waiting.items()):
            if rank not in self._waiting or any(other not in self._waiting for other in call.ranks):
                continue
            calls = {other: self._waiting[other] for other in call.ranks}
            if any(c.ranks != call.ranks for c in calls.values()):
                continue
            signatures = {(c.op, c.must_agree, c.dtype, c.detail) for c in calls.values()}
            if len(signatures) > 1:
                met = "; ".join(c.describe(other) for other, c in calls.items())
                self._fail(CollectiveMismatch(f"one group, different collectives: {met}"))
                return
            tensors = [c.tensor for c in calls.values()]
            for other in call.ranks:
                del self._waiting[other]
                self._results[other] = tensors
        if self._alive and self._alive <= self._waiting.keys():
            stuck = "; ".join(c.describe(rank) for rank, c in sorted(self._waiting.items()))
            gone = sorted(set(range(self.world_size)) - self._alive)
            done = f"; finished: ranks {gone}" if gone else ""
            self._fail(Deadlock(f"nobody can go on: {stuck}{done}"))
        self._condition.notify_all()

    def _fail(self, failure: Exception) -> None:
        self._failure = failure
        self._condition.notify_all()


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


#: torch sets a thread pool up when a thread first asks for it, and that is not safe between threads.
_first_use = threading.Lock()


def run_ranks(world_size: int, work: Callable[[ThreadTransport], T]) -> list[T | Exception]:
    """Run ``work`` once per rank; each rank's result or the exception that ended it."""
    hub = ThreadHub(world_size)
    outcomes: list[T | Exception] = [Abandoned()] * world_size

    def one(rank: int) -> None:
        try:
            with _first_use:
                torch.get_num_threads()
            outcomes[rank] = work(ThreadTransport(hub, rank))
        except (Exception, SystemExit) as error:
            outcomes[rank] = error if isinstance(error, Exception) else RuntimeError("the target called sys.exit()")
            hub.abandon()
        finally:
            hub.leave(rank)

    if world_size == 1:
        one(0)
        return outcomes
    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
