"""Ranks as processes of one machine: forked with everything imported, joined by gloo or NCCL."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import pickle
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist

from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock, Infeasible, Transport
from reference_runtime.comm.dist import DistTransport
from reference_runtime.limits import die_with, forking
from reference_runtime.ranks import TIMEOUT, Members, Result
from reference_runtime.scenarios import Case, Launch
from reference_runtime.stubs import StubReached

#: Errors that keep their kind on the way to the parent; any other becomes a RuntimeError with its text.
_KINDS = {kind.__name__: kind for kind in (Abandoned, CollectiveMismatch, Deadlock, Infeasible, StubReached)}


#: Seconds that the other ranks have once one of them has failed: what they wait for may never come.
_GRACE = 1.0


class ProcessRanks:
    """All ranks of one world size: one group of processes for all launches, see `ranks.Ranks`.

    A group in which a rank waits in vain, or whose process ends, is thrown away; the next case gets a new one.

    Args:
        backend: `gloo`, or `nccl` with a GPU for each rank.
    """

    def __init__(self, backend: str, members: Mapping[str, Members]) -> None:
        self._backend, self._members = backend, members
        self._size = size_of(members)
        self.children: list[RankProcess] = []
        self._folder = ""

    def run(self, side: str, case: Case) -> Sequence[Result]:
        members = self._members[side]
        if members.failure is not None:
            return [members.failure] * self._size
        patience = members.patience(first=not self.children)
        if not self.children:
            self._start()
        for child in self.children:
            child.ask(side, case)
        messages = answers(self.children, time.monotonic() + patience)
        results = [decoded(message) for message in messages]
        if any(map(lost, results)):
            self.close()
        return results

    def close(self) -> None:
        for child in self.children:
            child.end()
        self.children = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="reference-runtime-")  # where the ranks find each other
        for rank in range(self._size):
            self.children.append(RankProcess(self._members, rank, functools.partial(self._join, rank)))

    def _join(self, rank: int) -> None:
        if self._backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            self._backend, init_method=f"file://{self._folder}/store", rank=rank, world_size=self._size
        )


def size_of(members: Mapping[str, Members]) -> int:
    """The number of ranks of some variants."""
    return next(iter(members.values())).size


def lost(result: Result) -> bool:
    """Whether a rank cannot go on to another case: it waits for others, or its process has ended."""
    return isinstance(result, (Abandoned, Deadlock, Ended))


class Ended(RuntimeError):
    """A rank's process has ended."""


class Process:
    """A copy of this process, with a pipe each way. It dies with this one.

    Args:
        serve: what the copy does with (where it reads, where it writes).
    """

    def __init__(self, serve: Callable[[int, int], None]) -> None:
        there, here = os.pipe(), os.pipe()
        parent = os.getpid()
        with forking():
            self.pid = os.fork()
        if self.pid == 0:
            try:
                die_with(parent)
                os.close(there[1])
                os.close(here[0])
                torch.set_num_threads(1)
                serve(there[0], here[1])
            finally:
                os._exit(0)
        os.close(there[0])
        os.close(here[1])
        self.writer, self.reader = there[1], here[0]

    def send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            _write(self.writer, _dumped(message))

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError), forking():
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.writer)
        os.close(self.reader)
        os.waitpid(self.pid, 0)


class RankProcess(Process):
    """One rank's process: it stays a rank of its group, and is set up anew for every launch.

    Args:
        join: makes the calling process a rank of its group; called in the new process.
    """

    def __init__(self, members: Mapping[str, Members], rank: int, join: Callable[[], None]) -> None:
        super().__init__(functools.partial(_serve, members, rank, join))

    def ask(self, side: str, case: Case) -> None:
        """Have it run a case of one variant."""
        self.send((side, case))

    def receive(self, deadline: float) -> bytes:
        """The rank's answer, for `decoded`."""
        try:
            return _read(self.reader, deadline)
        except TimeoutError:
            return encoded(Deadlock("no answer in time"))
        except EOFError:
            return encoded(Ended(_ENDED))


_ENDED = "the rank's process ended"


def answers(children: Sequence[RankProcess], deadline: float) -> list[bytes]:
    """Everybody's answer. Once a rank has failed, the others have a little more time."""
    found: dict[int, bytes] = {}
    waiting = {child.reader: number for number, child in enumerate(children)}
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], max(0.0, deadline - time.monotonic()))
        for reader in ready:
            number = waiting.pop(reader)
            found[number] = children[number].receive(deadline)
            if isinstance(decoded(found[number]), Exception):
                deadline = min(deadline, time.monotonic() + _GRACE)
        if not ready:
            late = encoded(Abandoned() if found else Deadlock("no answer in time"))
            found.update(dict.fromkeys(waiting.values(), late))
            break
    return [found[number] for number in range(len(children))]


def encoded(result: Result) -> bytes:
    """A rank's result as bytes, for `decoded`."""
    if isinstance(result, Exception):
        kind = type(result).__name__
        known = kind in _KINDS or kind == Ended.__name__ or type(result) is RuntimeError
        return _dumped((kind, str(result) if known else f"{kind}: {result}"))
    return _dumped(("result", result))


def decoded(message: bytes) -> Result:
    """The result that `encoded` wrote. The sender runs target code, so only a process that may, too, decodes it."""
    kind, value = pickle.loads(message)
    if kind == "result":
        result: Result = value
        return result
    return Ended(value) if kind == Ended.__name__ else _KINDS.get(kind, RuntimeError)(value)


def _serve(members: Mapping[str, Members], rank: int, join: Callable[[], None], reader: int, writer: int) -> None:
    """The rank's process: a case per message, each variant set up for its launch."""
    transport = DistTransport(rank, size_of(members), TIMEOUT)
    own: Launches = Renewed(members, transport)
    if not any(variant.on_gpu for variant in members.values()):
        own = Forked(members, transport)
    failure: Exception | None = None
    try:
        join()
    except Exception as error:
        failure = error
    while True:
        side, case = pickle.loads(_read(reader, None))
        _write(writer, encoded(failure) if failure is not None else own.answer(side, case))


class Launches(Protocol):
    """One rank of a lasting group, for one launch after another."""

    def answer(self, side: str, case: Case) -> bytes:
        """The encoded result of a case of one variant."""


class Renewed:
    """In this process: for each launch the modules are imported again. A GPU can be used by no copy of it."""

    def __init__(self, members: Mapping[str, Members], transport: Transport) -> None:
        self._variants = {side: _Variant(variant, transport) for side, variant in members.items()}

    def answer(self, side: str, case: Case) -> bytes:
        return encoded(self._variants[side].result(case))


class Forked:
    """In a copy of this process for each launch, which finds the modules as they were imported.

    The copy is no rank of the group: what it wants of the others, this process does for it.
    """

    def __init__(self, members: Mapping[str, Members], transport: Transport) -> None:
        self._members, self._transport = members, transport
        self._launch: Launch | None = None
        self._copy: Process | None = None

    def answer(self, side: str, case: Case) -> bytes:
        if self._copy is None or self._launch != case.launch:
            if self._copy is not None:
                self._copy.end()
            self._copy, self._launch = Process(self._serve), case.launch
        self._copy.send((side, case))
        try:
            while True:
                wanted, value = pickle.loads(_read(self._copy.reader, None))
                if wanted == _ANSWER:
                    answer: bytes = value
                    return answer
                self._copy.send(self._met(wanted, value))
        except EOFError:
            return encoded(Ended(_ENDED))

    def _met(self, wanted: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return getattr(self._transport, wanted)(*arguments)
        except Exception as error:
            return error

    def _serve(self, reader: int, writer: int) -> None:
        relay = _Relay(self._transport, reader, writer)
        variants = {side: _Variant(variant, relay) for side, variant in self._members.items()}
        while True:
            side, case = pickle.loads(_read(reader, None))
            _write(writer, _dumped((_ANSWER, encoded(variants[side].result(case)))))


_ANSWER = "answer"


class _Relay(Transport):
    """The collectives of a process that has them done by the one that it is a copy of."""

    def __init__(self, inner: Transport, reader: int, writer: int) -> None:
        self.rank, self.world_size = inner.rank, inner.world_size
        self._reader, self._writer = reader, writer

    def _have(self, wanted: str, *arguments: Any) -> Any:
        _write(self._writer, _dumped((wanted, arguments)))
        found = pickle.loads(_read(self._reader, None))
        if isinstance(found, Exception):
            raise found
        return found

    def all_reduce(self, tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
        return cast(torch.Tensor, self._have("all_reduce", tensor, ranks))

    def all_gather(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int] | None) -> list[torch.Tensor]:
        return cast(list[torch.Tensor], self._have("all_gather", tensor, ranks, sizes))

    def reduce_scatter(self, tensor: torch.Tensor, ranks: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        return cast(torch.Tensor, self._have("reduce_scatter", tensor, ranks, sizes))

    def broadcast(self, tensor: torch.Tensor, ranks: Sequence[int], source: int) -> torch.Tensor:
        return cast(torch.Tensor, self._have("broadcast", tensor, ranks, source))

    def barrier(self, ranks: Sequence[int]) -> None:
        self._have("barrier", ranks)


class _Variant:
    """One variant on one rank, set up for one launch after another."""

    def __init__(self, members: Members, transport: Transport) -> None:
        self._members, self._transport = members, transport
        self._launch: Launch | None = None
        self._built: Any = None

    def result(self, case: Case) -> Result:
        """Of one case."""
        if self._launch != case.launch:
            self._enter(case.launch)
        if isinstance(self._built, Exception):
            return self._built
        try:
            return self._members.step(self._transport, self._built, case)
        except Exception as error:
            return error

    def _enter(self, launch: Launch) -> None:
        if self._launch is not None:
            self._built = None
            self._members.renew(self._transport.rank)
            gc.collect()  # what the last launch has made
        self._launch = launch
        try:
            if self._members.failure is not None:
                raise self._members.failure
            self._built = self._members.enter(launch, self._transport)
        except Exception as error:
            self._built = error


class _Pickler(pickle.Pickler):
    """Tensors as their bytes: torch's own way writes a file's worth of headers, ten times as slow."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        data = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (data, tuple(value.shape), value.dtype)


def _tensor(data: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(data).view(dtype).reshape(shape)


def _dumped(message: object) -> bytes:
    """For `pickle.loads`."""
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(message)
    return stream.getvalue()


def _write(fd: int, data: bytes) -> None:
    data = struct.pack("<Q", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int, deadline: float | None) -> bytes:
    (size,) = struct.unpack("<Q", _exactly(fd, 8, deadline))
    return _exactly(fd, size, deadline)


def _exactly(fd: int, size: int, deadline: float | None) -> bytes:
    data = b""
    while len(data) < size:
        if deadline is not None:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
        more = os.read(fd, min(1 << 20, size - len(data)))
        if not more:
            raise EOFError
        data += more
    return data
