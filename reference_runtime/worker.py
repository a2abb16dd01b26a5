"""The process between the command and the target: forks confined processes for the jobs and outlives all of them.

It imports torch once and runs no target code itself. Its argument is the module that knows the jobs (`job.py`, if none
is given); they come as JSON on standard input. Lines of the jobs go to standard output, and `{"job", "ended",
"seconds"}` when a job is done or its process has ended. Jobs that import the same modules share a process. If one of
them ends it, the others get a new one.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from reference_runtime.limits import adopt_orphans, confine, die_with, gone, kill_group, kill_orphans, resident
from reference_runtime.plan import Job, Settings
from reference_runtime.reference.environment import declared
from reference_runtime.space import REAL_PACKAGES, source

if TYPE_CHECKING:
    from reference_runtime.torchrun import Peers

_TICK = 0.1
#: What a job may ask its successors to have imported.
_LIBRARIES = REAL_PACKAGES - sys.stdlib_module_names


#: Runs jobs that import the same modules, and emits lines.
Execute = Callable[[Sequence[Job], Callable[[str], None]], None]


@dataclass
class _Child:
    jobs: list[Job]  #: that are not done, the current one first
    settings: Settings
    pid: int
    reader: int
    output: IO[bytes]
    started: float
    rest: bytes = b""
    killed: str = ""
    sources: dict[str, bool] = field(default_factory=dict)
    libraries: list[str] = field(default_factory=list)


def main() -> None:
    """Read the plan, run it, end."""
    parent = os.getppid()
    die_with(parent)
    adopt_orphans()
    plan = json.load(sys.stdin)
    known = importlib.import_module(sys.argv[1] if len(sys.argv) > 1 else "reference_runtime.job")
    jobs: list[Job] = [known.Job.from_dict(data) for data in plan["jobs"]]
    torch.set_num_threads(1)
    for tree in {tree for job in jobs for tree in job.trees()}:
        declared(tree.argument_files())  # read once, not by every job
    peers = _peers(jobs)
    with tempfile.TemporaryDirectory(prefix="moe-lint-") as scratch:
        _run(jobs, known.execute, peers, Path(scratch))


def _peers(jobs: list[Job]) -> Peers | None:
    """The workers of the other ranks, if torchrun started one for each. Raises ValueError."""
    member = jobs[0].settings.member if jobs else None
    if member is None:
        return None
    from reference_runtime.torchrun import Peers

    peers = Peers(member)
    peers.agree(jobs)
    return peers


def _run(jobs: list[Job], execute: Execute, peers: Peers | None, scratch: Path) -> None:
    if jobs and jobs[0].settings.kernels != "reference":
        from reference_runtime.kernels.flashinfer import prepare

        prepare()  # compiling starts programs, which a job may not
    parallel = max(1, jobs[0].settings.parallel) if jobs and peers is None else 1
    selector = selectors.DefaultSelector()
    running: dict[int, _Child] = {}
    waiting = _sharing(jobs)
    watched = 0.0
    while waiting or running:
        while waiting and len(running) < parallel:
            child = _start(waiting.pop(0), execute, scratch)
            running[child.reader] = child
            selector.register(child.reader, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select(_TICK)}
        due = time.monotonic() - watched >= _TICK
        watched = time.monotonic() if due else watched
        for reader, child in list(running.items()):
            if due:
                _watch(child, peers)
            if data := os.read(reader, 1 << 16) if reader in ready else b"":
                _relay(child, data, peers)
            elif reader in ready or gone(child.pid):  # a process that it left may hold the pipe open
                selector.unregister(reader)
                del running[reader]
                _finish(child, peers, {other.pid for other in running.values()})
                if child.jobs:
                    waiting.insert(0, child.jobs)


def _sharing(jobs: list[Job]) -> list[list[Job]]:
    """The jobs by process, in order."""
    groups: dict[object, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.imports, []).append(job)
    return list(groups.values())


def _start(jobs: list[Job], execute: Execute, scratch: Path) -> _Child:
    reader, writer = os.pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115  (read after the child has ended)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(jobs, execute, writer, output, scratch, parent)
    os.close(writer)
    return _Child(jobs, jobs[0].settings, pid, reader, output, time.monotonic())


def _child(jobs: list[Job], execute: Execute, writer: int, output: IO[bytes], scratch: Path, parent: int) -> None:
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
        settings = jobs[0].settings
        cpu = settings.device == "cpu"
        alone = settings.member is None
        confine(settings.memory if cpu else None, network=cpu and alone, files=cpu, scratch=scratch)
        die_with(parent)  # entering a user namespace would have made it forget
        execute(jobs, lambda line: _write(writer, line))
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


def _relay(child: _Child, data: bytes, peers: Peers | None) -> None:
    *lines, child.rest = (child.rest + data).split(b"\n")
    for line in lines:
        parsed = json.loads(line)
        if "sources" in parsed:
            child.sources, child.libraries = parsed["sources"], parsed["libraries"]
            _ended(child, "", peers)
        else:
            _tell(parsed)


def _ended(child: _Child, why: str, peers: Peers | None) -> None:
    """Tell how the current job ended; the next one of its process begins."""
    job = child.jobs.pop(0)
    if peers is not None:
        why = peers.ended(job.number, why, job.settings.timeout)
    now = time.monotonic()
    _tell({"job": job.number, "ended": why, "seconds": round(now - child.started, 3)})
    child.started = now


def _overstepped(child: _Child, job: Job, peers: Peers | None) -> str:
    """Why the process may not go on; empty if it may."""
    if time.monotonic() - child.started > job.timeout:
        return f"no answer within {job.timeout:g} s"
    if resident(child.pid) > child.settings.memory:
        return f"more than {child.settings.memory >> 20} MiB of memory"
    return peers.lost(job.number) if peers is not None else ""


def _watch(child: _Child, peers: Peers | None) -> None:
    if child.jobs and not child.killed:
        child.killed = _overstepped(child, child.jobs[0], peers)
    if child.killed or not child.jobs:
        kill_group(child.pid)


def _cause(status: int, output: IO[bytes]) -> str:
    """Why a process ended that was not done."""
    why = "ended before its work was done"
    if os.WIFSIGNALED(status):
        why = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    elif os.WEXITSTATUS(status) != 0:
        why = f"ended with status {os.WEXITSTATUS(status)}"
    output.seek(0)
    last = output.read()[-4000:].decode(errors="replace").strip().splitlines()
    return f"{why}: {last[-1][:200]}" if last else why


def _finish(child: _Child, peers: Peers | None, others: set[int]) -> None:
    os.set_blocking(child.reader, False)
    with contextlib.suppress(BlockingIOError):
        while data := os.read(child.reader, 1 << 16):  # its last words
            _relay(child, data, peers)
    os.close(child.reader)
    kill_group(child.pid)  # what it may have left behind
    _, status = os.waitpid(child.pid, 0)
    kill_orphans(others)
    if child.jobs:
        _ended(child, child.killed or _cause(status, child.output), peers)
    child.output.close()
    # later jobs inherit what these had to compile and to import; neither runs anything of the target's
    for path, asked in child.sources.items():
        compiled = source(Path(path))
        _ = asked and compiled.optional
    if child.settings.device == "cpu":  # some look at the GPU, and then no rank that uses it can be forked
        for name in child.libraries:
            if name not in sys.modules and name.partition(".")[0] in _LIBRARIES:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)


def _tell(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
