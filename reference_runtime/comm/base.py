"""What a backend of collectives offers, what is recorded, and what can go wrong."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


class CollectiveMismatch(Exception):
    """The ranks of one group met in different collectives, or with different shapes."""

    @classmethod
    def of(cls, met: Mapping[int, tuple[str, Sequence[int]]]) -> CollectiveMismatch:
        """Names who met in what: of each rank the collective and the shape of its tensor."""
        alike: dict[str, list[int]] = {}
        for rank, (op, shape) in met.items():
            alike.setdefault(f"{op} of {sized(shape)}", []).append(rank)
        calls = ", ".join(f"{call} ({listed(ranks)})" for call, ranks in alike.items())
        return cls(f"one group, different collectives: {calls}")


def sized(shape: Sequence[int]) -> str:
    """The shape of a tensor, in short."""
    return "x".join(map(str, shape))


def listed(ranks: Sequence[int]) -> str:
    """Some ranks: `rank 3`, `ranks 0, 2`, or `ranks 0 to 7` where they follow one another."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    run = len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[0] + len(ranks)))
    return f"ranks {ranks[0]} to {ranks[-1]}" if run else f"ranks {', '.join(map(str, ranks))}"


class Deadlock(Exception):
    """Every rank that still runs waits for a rank that will not come."""


class Infeasible(Exception):
    """The engine cannot run this configuration: its own code asks for something that cannot be. Says what."""


class Abandoned(Exception):
    """Another rank failed while this one waited. Not a cause of its own."""


@dataclass(frozen=True, slots=True)
class Event:
    """One collective as a rank saw it."""

    op: str
    group: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.op}({self.group}, {sized(self.shape)})"


@dataclass
class Trace:
    """The ordered collectives of one rank. Recording can be paused, e.g. while an absorber works."""

    events: list[Event] = field(default_factory=list)
    #: (file, line) of the calls that led to a collective, in files of which `watched` is the beginning of the name
    places: set[tuple[str, int]] = field(default_factory=set)
    watched: tuple[str, ...] = ()

    def record(self, op: str, group: str, tensor: torch.Tensor) -> None:
        """Note a collective with the shape of its operand, and where in the watched files it comes from."""
        self.events.append(Event(op, group, tuple(tensor.shape)))
        frame = sys._getframe(1) if self.watched else None
        while frame is not None:
            if frame.f_code.co_filename.startswith(self.watched):
                self.places.add((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back

    def clear(self) -> None:
        """Before another case."""
        self.events.clear()
        self.places.clear()


class Transport(ABC):
    """The collectives of one rank over sets of global ranks.

    ``ranks`` is the group in group order; the caller is one of them. A group of one never gets here. All tensors are
    contiguous. The results are new tensors.
    """

    rank: int
    world_size: int

    @abstractmethod
    def all_reduce(self, tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
        """The sum over the group, in group order."""

    @abstractmethod
    def all_gather(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int] | None) -> list[torch.Tensor]:
        """Everybody's tensor. ``sizes``: rows of each rank, if they may differ."""

    @abstractmethod
    def reduce_scatter(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """The sum's rows that belong to the caller: ``sizes`` gives each rank's number of rows."""

    def barrier(self, ranks: Sequence[int]) -> None:
        """Wait for the group."""
        self.all_gather(torch.zeros(1), ranks, None)

    def process_group(self, ranks: Sequence[int]) -> Any:
        """torch's process group of these ranks; None where ranks are no processes."""
        return None

    @abstractmethod
    def broadcast(self, tensor: torch.Tensor, ranks: Sequence[int], source: int) -> torch.Tensor:
        """The tensor of the rank at position ``source`` of the group."""
