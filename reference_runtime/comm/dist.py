"""Ranks as processes: the collectives of `torch.distributed` (gloo or NCCL).

Before each collective the ranks of the group tell each other what they are about to do. So a mismatch is named, where
the backends abort or hang; what is left, a rank that does not come, ends in the backend's timeout.
"""

from __future__ import annotations

import datetime
import functools
import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from reference_runtime.comm.base import CollectiveMismatch, Deadlock, Transport, listed, sized


class DistTransport(Transport):
    """One rank's end of a process group."""

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self.rank, self.world_size = rank, world_size
        self._timeout = datetime.timedelta(seconds=timeout)
        self._groups: dict[tuple[int, ...], Any] = {}
        self._control: dict[tuple[int, ...], Any] = {}

    def _group(self, ranks: Sequence[int]) -> tuple[Any, Any]:
        """(the group that carries tensors, a CPU group that carries the announcements)."""
        key = tuple(ranks)
        if key not in self._groups:
            make = functools.partial(
                dist.new_group, ranks=list(key), timeout=self._timeout, use_local_synchronization=True
            )
            self._groups[key] = make()
            self._control[key] = self._groups[key] if dist.get_backend() == "gloo" else make(backend="gloo")
        return self._groups[key], self._control[key]

    def _meet(self, op: str, tensor: torch.Tensor, ranks: Sequence[int], detail: Sequence[int]) -> Any:
        try:
            group, control = self._group(ranks)
            shape = tensor.shape[1:] if op == "all_gather" and detail else tensor.shape
            told = f"{op}|{tuple(shape)}|{tensor.dtype}|{tuple(detail)}"
            mine = torch.tensor([zlib.crc32(told.encode())])
            everybody = [torch.zeros_like(mine) for _ in ranks]
            dist.all_gather(everybody, mine, group=control)
            if any(int(other) != int(mine) for other in everybody):
                described: list[Any] = [None] * len(ranks)
                dist.all_gather_object(described, (op, tuple(tensor.shape)), group=control)
                raise CollectiveMismatch.of(dict(zip(ranks, described, strict=True)))
        except RuntimeError as error:
            raise self._lost(op, tensor, ranks) from error
        return group

    def _lost(self, op: str, tensor: torch.Tensor, ranks: Sequence[int]) -> Deadlock:
        return Deadlock(f"nobody came: rank {self.rank} in {op} of {sized(tensor.shape)} over {listed(ranks)}")

    def all_reduce(self, tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
        group = self._meet("all_reduce", tensor, ranks, ())
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    def all_gather(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int] | None) -> list[torch.Tensor]:
        group = self._meet("all_gather", tensor, ranks, sizes or ())
        if sizes is None:
            return self._gathered(tensor, group, len(ranks))
        # gloo and NCCL gather equal parts: pad to the longest
        longest = max(sizes)
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: tensor.shape[0]] = tensor
        parts = self._gathered(padded, group, len(ranks))
        return [part[:rows] for part, rows in zip(parts, sizes, strict=True)]

    @staticmethod
    def _gathered(tensor: torch.Tensor, group: Any, count: int) -> list[torch.Tensor]:
        """Everybody's tensor, all of one shape."""
        together = tensor.new_empty((count * tensor.shape[0], *tensor.shape[1:]))
        dist.all_gather_into_tensor(together, tensor, group=group)
        return list(together.chunk(count)) if tensor.shape[0] else [tensor] * count

    def barrier(self, ranks: Sequence[int]) -> None:
        self._meet("barrier", torch.zeros(1), ranks, ())

    def process_group(self, ranks: Sequence[int]) -> Any:
        return self._group(ranks)[0]

    def reduce_scatter(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        group = self._meet("reduce_scatter", tensor, ranks, sizes)
        mine = list(ranks).index(self.rank)
        if len(set(sizes)) == 1:
            output = tensor.new_empty((sizes[mine], *tensor.shape[1:]))
            dist.reduce_scatter_tensor(output, tensor.clone(), group=group)
            return output
        total = tensor.clone()  # unequal parts: sum everything, keep the own rows
        dist.all_reduce(total, group=group)
        return total.narrow(0, sum(sizes[:mine]), sizes[mine]).clone()

    def broadcast(self, tensor: torch.Tensor, ranks: Sequence[int], source: int) -> torch.Tensor:
        group = self._meet("broadcast", tensor, ranks, (source,))
        result = tensor.clone()
        dist.broadcast(result, src=list(ranks)[source], group=group)
        return result
