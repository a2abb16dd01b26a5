"""The process between the command and the target: forks one confined process per job and outlives all of them.

It imports torch once and runs no target code itself. Jobs come as JSON on standard input; lines of the jobs go to
standard output, and `{"job", "ended", "seconds"}` when a job's process has ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from reference_runtime import job as job_module
from reference_runtime.limits import adopt_orphans, confine, die_with, gone, kill_group, kill_orphans, resident
from reference_runtime.plan import Job
from reference_runtime.reference.environment import declared
from reference_runtime.space import REAL_PACKAGES, source

if TYPE_CHECKING:
    from reference_runtime.torchrun import Peers

_TICK = 0.1
#: What a job may ask its successors to have imported.
_LIBRARIES = REAL_PACKAGES - sys.stdlib_module_names


@dataclass
class _Child:
    job: Job
    pid: int
    reader: int
    output: IO[bytes]
    started: float
    rest: bytes = b""
    killed: str = ""
    done: bool = False
    sources: dict[str, bool] = field(default_factory=dict)
    libraries: list[str] = field(default_factory=list)


def main() -> None:
    """Read the plan, run it, end."""
    parent = os.getppid()
    die_with(parent)
    adopt_orphans()
    plan = json.load(sys.stdin)
    jobs = [Job.from_dict(data) for data in plan["jobs"]]
    torch.set_num_threads(1)
    for tree in {tree for job in jobs for tree in job.trees()}:
        declared(tree.argument_files())  # read once, not by every job
    peers = _peers(jobs)
    with tempfile.TemporaryDirectory(prefix="moe-lint-") as scratch:
        _run(jobs, peers, Path(scratch))


def _peers(jobs: list[Job]) -> Peers | None:
    """The workers of the other ranks, if torchrun started one for each. Raises ValueError."""
    member = jobs[0].settings.member if jobs else None
    if member is None:
        return None
    from reference_runtime.torchrun import Peers

    peers = Peers(member)
    peers.agree(jobs)
    return peers


def _run(jobs: list[Job], peers: Peers | None, scratch: Path) -> None:
    if jobs and jobs[0].settings.kernels != "reference":
        from reference_runtime.kernels.flashinfer import prepare

        prepare()  # compiling starts programs, which a job may not
    parallel = max(1, jobs[0].settings.parallel) if jobs and peers is None else 1
    selector = selectors.DefaultSelector()
    running: dict[int, _Child] = {}
    waiting = list(jobs)
    while waiting or running:
        while waiting and len(running) < parallel:
            child = _start(waiting.pop(0), scratch)
            running[child.reader] = child
            selector.register(child.reader, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select(_TICK)}
        for reader, child in list(running.items()):
            _watch(child, peers)
            if data := os.read(reader, 1 << 16) if reader in ready else b"":
                _relay(child, data)
            elif reader in ready or gone(child.pid):  # a process that it left may hold the pipe open
                selector.unregister(reader)
                del running[reader]
                _finish(child, peers, {other.pid for other in running.values()})


def _start(job: Job, scratch: Path) -> _Child:
    reader, writer = os.pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115  (read after the child has ended)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(job, writer, output, scratch, parent)
    os.close(writer)
    return _Child(job, pid, reader, output, time.monotonic())


def _child(job: Job, writer: int, output: IO[bytes], scratch: Path, parent: int) -> None:
    """The forked process. Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        torch.set_num_threads(1)  # makes the copy's thread pool anew while there is one thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        cpu = job.settings.device == "cpu"
        alone = job.settings.member is None
        confine(job.settings.memory if cpu else None, network=cpu and alone, files=cpu, scratch=scratch)
        die_with(parent)  # entering a user namespace would have made it forget
        job_module.execute(job, lambda line: _write(writer, line))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no clean-up of the target's may run, or hang


def _write(writer: int, line: str) -> None:
    data = line.encode()
    while data:
        data = data[os.write(writer, data) :]


def _relay(child: _Child, data: bytes) -> None:
    *lines, child.rest = (child.rest + data).split(b"\n")
    for line in lines:
        parsed = json.loads(line)
        if "sources" in parsed:
            child.sources, child.libraries, child.done = parsed["sources"], parsed["libraries"], True
        else:
            _tell(parsed)


def _watch(child: _Child, peers: Peers | None) -> None:
    settings = child.job.settings
    if not child.killed and time.monotonic() - child.started > child.job.timeout:
        child.killed = f"no answer within {child.job.timeout:g} s"
    elif not child.killed and resident(child.pid) > settings.memory:
        child.killed = f"more than {settings.memory >> 20} MiB of memory"
    elif not child.killed and peers is not None:
        child.killed = peers.lost(child.job.number)
    if child.killed:
        kill_group(child.pid)


def _finish(child: _Child, peers: Peers | None, others: set[int]) -> None:
    os.set_blocking(child.reader, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(child.reader, 1 << 16):  # its last words
            _relay(child, data)
    os.close(child.reader)
    kill_group(child.pid)  # what it may have left behind
    _, status = os.waitpid(child.pid, 0)
    kill_orphans(others)
    ended = child.killed
    if not ended and os.WIFSIGNALED(status):
        ended = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    elif not ended and os.WEXITSTATUS(status) != 0:
        ended = f"ended with status {os.WEXITSTATUS(status)}"
    elif not ended and not child.done:
        ended = "ended before its work was done"
    if ended:
        child.output.seek(0)
        last = child.output.read()[-4000:].decode(errors="replace").strip().splitlines()
        ended += f": {last[-1][:200]}" if last and not child.killed else ""
    child.output.close()
    if peers is not None:
        ended = peers.ended(child.job.number, ended, child.job.settings.timeout)
    _tell({"job": child.job.number, "ended": ended, "seconds": round(time.monotonic() - child.started, 3)})
    # later jobs inherit what this one had to compile and to import; neither runs anything of the target's
    for path, asked in child.sources.items():
        compiled = source(Path(path))
        _ = asked and compiled.optional
    if child.job.settings.device == "cpu":  # some look at the GPU, and then no rank that uses it can be forked
        for name in child.libraries:
            if name not in sys.modules and name.partition(".")[0] in _LIBRARIES:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)


def _tell(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
