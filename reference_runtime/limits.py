"""What a process that runs target code may not do: reach the network, start programs, grow without end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

_FORBIDDEN = ("socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec",
              "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "pty.spawn")  # fmt: skip
_LOCAL = ("127.0.0.1", "::1", "localhost")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def confine(memory: int | None, network_namespace: bool) -> None:
    """Give up, for this process and for good, what target code has no business with.

    Args:
        memory: bytes of address space beyond what is in use now; None where a driver maps more than it uses.
        network_namespace: leave the machine's network, where the kernel lets us. Ranks as processes need theirs.
    """
    if memory is not None:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if network_namespace:
        # Not everywhere allowed; the hook below holds either way.
        ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    sys.addaudithook(_refuse)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Around the runtime's own forks, which the target may not do."""
    global _forking
    _forking = True
    try:
        yield
    finally:
        _forking = False


_forking = False


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Around the runtime's own kernels: some are compiled when they are first called, by programs that they start."""
    global _compiling
    before, _compiling = _compiling, True
    try:
        yield
    finally:
        _compiling = before


_compiling = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _FORBIDDEN and not _compiling and not (_forking and event == "os.fork"):
        raise PermissionError(f"the target may not use {event}")
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) and address else address
        if host not in _LOCAL:
            raise PermissionError(f"the target may not use the network ({host})")


def resident(pid: int) -> int:
    """Bytes of memory in use by a process; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def kill_group(pid: int) -> None:
    """End a process and those that it started."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)
