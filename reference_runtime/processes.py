"""Ranks as processes of one machine: forked with everything imported, joined by gloo or NCCL."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock, Infeasible
from reference_runtime.comm.dist import DistTransport
from reference_runtime.limits import die_with, forking
from reference_runtime.ranks import TIMEOUT, Members, Result
from reference_runtime.scenarios import Case, Launch
from reference_runtime.stubs import StubReached

#: Errors that keep their kind on the way to the parent; any other becomes a RuntimeError with its text.
_KINDS = {kind.__name__: kind for kind in (Abandoned, CollectiveMismatch, Deadlock, Infeasible, StubReached)}


class ProcessRanks:
    """All ranks of one launch. A group in which a case failed is thrown away; the next case gets a new one.

    Args:
        backend: `gloo`, or `nccl` with a GPU for each rank.
    """

    def __init__(self, backend: str, members: Members, launch: Launch) -> None:
        self._backend, self._members, self._launch = backend, members, launch
        self._children: list[RankProcess] = []
        self._folder = ""

    def run(self, case: Case) -> Sequence[Result]:
        if self._members.failure is not None:
            return [self._members.failure] * self._members.size
        patience = self._members.patience(first=not self._children)
        if not self._children:
            self._start()
        for child in self._children:
            child.send(case)
        deadline = time.monotonic() + patience
        results = [decoded(child.receive(deadline)) for child in self._children]
        if any(isinstance(result, Exception) for result in results):
            self.close()
        return results

    def close(self) -> None:
        for child in self._children:
            child.end()
        self._children = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="reference-runtime-")  # where the ranks find each other
        for rank in range(self._members.size):
            join = functools.partial(self._join, rank)
            self._children.append(RankProcess(self._members, self._launch, rank, join))

    def _join(self, rank: int) -> None:
        if self._backend == "nccl":
            torch.cuda.set_device(rank)
        dist.init_process_group(
            self._backend, init_method=f"file://{self._folder}/store", rank=rank, world_size=self._members.size
        )


class RankProcess:
    """One rank's process, with a pipe each way.

    Args:
        join: makes the calling process a rank of its group; called in the new process.
    """

    def __init__(self, members: Members, launch: Launch, rank: int, join: Callable[[], None]) -> None:
        there, here = os.pipe(), os.pipe()
        parent = os.getpid()
        with forking():
            self.pid = os.fork()
        if self.pid == 0:
            die_with(parent)
            os.close(there[1])
            os.close(here[0])
            _serve(members, launch, rank, join, there[0], here[1])
        os.close(there[0])
        os.close(here[1])
        self._out, self._in = there[1], here[0]

    def send(self, case: Case) -> None:
        with contextlib.suppress(BrokenPipeError):
            _write(self._out, pickle.dumps(case))

    def receive(self, deadline: float) -> bytes:
        """The rank's answer, for `decoded`."""
        try:
            return _read(self._in, deadline)
        except TimeoutError:
            return encoded(Deadlock("no answer in time"))
        except EOFError:
            return encoded(RuntimeError("the rank's process ended"))

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError), forking():
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._out)
        os.close(self._in)
        os.waitpid(self.pid, 0)


def encoded(result: Result) -> bytes:
    """A rank's result as bytes, for `decoded`."""
    if isinstance(result, Exception):
        kind = type(result).__name__
        known = kind in _KINDS or type(result) is RuntimeError
        return pickle.dumps((kind, str(result) if known else f"{kind}: {result}"))
    output, trace = result
    output = output.detach().to("cpu").contiguous()
    data = output.view(torch.uint8).numpy().tobytes()
    return pickle.dumps(("result", (data, tuple(output.shape), output.dtype, trace)))


def decoded(message: bytes) -> Result:
    """The result that `encoded` wrote. The sender runs target code, so only a process that may, too, decodes it."""
    kind, value = pickle.loads(message)
    if kind == "result":
        data, shape, dtype, trace = value
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape), trace
    return _KINDS.get(kind, RuntimeError)(value)


def _serve(members: Members, launch: Launch, rank: int, join: Callable[[], None], reader: int, writer: int) -> None:
    """The rank's process: build once, then run a case per message. Never returns."""
    try:
        torch.set_num_threads(1)
        transport = DistTransport(rank, members.size, TIMEOUT)
        model: Any = None
        failure: Exception | None = None
        try:
            join()
            model = members.enter(launch, transport)
        except Exception as error:
            failure = error
        while True:
            case = pickle.loads(_read(reader, None))
            _write(writer, _answer(members, transport, model, failure, case))
    finally:
        os._exit(0)


def _answer(members: Members, transport: DistTransport, model: Any, failure: Exception | None, case: Case) -> bytes:
    try:
        if failure is not None:
            raise failure
        return encoded(members.step(transport, model, case))
    except Exception as error:
        return encoded(error)


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
