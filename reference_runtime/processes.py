"""Ranks as processes of one machine: forked with everything imported, joined by gloo."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import shutil
import signal
import struct
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from reference_runtime.comm.base import Abandoned, CollectiveMismatch, Deadlock, Infeasible
from reference_runtime.comm.dist import DistTransport
from reference_runtime.limits import forking
from reference_runtime.ranks import Members, Result
from reference_runtime.scenarios import Case, Launch
from reference_runtime.stubs import StubReached

#: Seconds that a collective waits for the others. Everything here takes milliseconds.
TIMEOUT = 10.0
#: Errors that keep their kind on the way to the parent; any other becomes a RuntimeError with its text.
_KINDS = {kind.__name__: kind for kind in (Abandoned, CollectiveMismatch, Deadlock, Infeasible, StubReached)}


class ProcessRanks:
    """All ranks of one launch. A group in which a case failed is thrown away; the next case gets a new one."""

    def __init__(self, members: Members, launch: Launch) -> None:
        self._members, self._launch = members, launch
        self._children: list[_Rank] = []
        self._folder = ""

    def run(self, case: Case) -> Sequence[Result]:
        if self._members.failure is not None:
            return [self._members.failure] * self._members.size
        if not self._children:
            self._start()
        for child in self._children:
            child.send(case)
        deadline = time.monotonic() + 3 * TIMEOUT
        results = [child.receive(deadline) for child in self._children]
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
            self._children.append(_Rank(self._members, self._launch, rank, os.path.join(self._folder, "store")))


class _Rank:
    """One rank's process, with a pipe each way."""

    def __init__(self, members: Members, launch: Launch, rank: int, store: str) -> None:
        there, here = os.pipe(), os.pipe()
        with forking():
            self.pid = os.fork()
        if self.pid == 0:
            os.close(there[1])
            os.close(here[0])
            _serve(members, launch, rank, store, there[0], here[1])
        os.close(there[0])
        os.close(here[1])
        self._out, self._in = there[1], here[0]

    def send(self, case: Case) -> None:
        with contextlib.suppress(BrokenPipeError):
            _write(self._out, pickle.dumps(case))

    def receive(self, deadline: float) -> Result:
        try:
            kind, value = pickle.loads(_read(self._in, deadline))
        except TimeoutError:
            return Deadlock(f"no answer within {3 * TIMEOUT:g} s")
        except EOFError:
            return RuntimeError("the rank's process ended")
        if kind == "result":
            data, shape, dtype, trace = value
            return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape), trace
        return _KINDS.get(kind, RuntimeError)(value)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._out)
        os.close(self._in)
        os.waitpid(self.pid, 0)


def _serve(members: Members, launch: Launch, rank: int, store: str, reader: int, writer: int) -> None:
    """The rank's process: build once, then run a case per message. Never returns."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=members.size)
        transport = DistTransport(rank, members.size, TIMEOUT)
        model: Any = None
        failure: Exception | None = None
        try:
            model = members.enter(launch, transport)
        except Exception as error:
            failure = error
        while True:
            case = pickle.loads(_read(reader, None))
            _write(writer, pickle.dumps(_answer(members, transport, model, failure, case)))
    finally:
        os._exit(0)


def _answer(members: Members, transport: DistTransport, model: Any, failure: Exception | None, case: Case) -> Any:
    try:
        if failure is not None:
            raise failure
        output, trace = members.step(transport, model, case)
        output = output.detach().to("cpu").contiguous()
        data = output.view(torch.uint8).numpy().tobytes()
        return "result", (data, tuple(output.shape), output.dtype, trace)
    except Exception as error:
        kind = type(error).__name__
        return kind, str(error) if kind in _KINDS else f"{kind}: {error}"


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
