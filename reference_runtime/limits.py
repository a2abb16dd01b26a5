"""What a process that runs target code may not do: reach the network, write files, start programs, grow without end.

Two fences. On Linux, where the kernel lets us: namespaces of its own, in which there is no network but the loopback of
the job's own ranks and in which every file system is read-only; native code is behind these, too. Everywhere: a hook
on what Python code does, which names what was refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FORBIDDEN = ("socket.__new__", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system",
              "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "pty.spawn", "os.kill",
              "os.killpg")  # fmt: skip
_OWN = ("os.fork", "os.kill")
#: Events that change files, all of whose texts are paths.
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown", "os.link",
            "os.symlink", "os.utime")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
#: Of the scratch folder, where it is a file system of its own.
_SCRATCH_SIZE = 64 << 20


def confine(memory: int | None, network: bool, files: bool, scratch: Path) -> None:
    """Give up, for this process and for good, what target code has no business with.

    Args:
        memory: bytes of address space beyond what is in use now; None where a driver maps more than it uses.
        network: leave the machine's network. Ranks that others started need it.
        files: see all file systems read-only. A GPU's driver writes to some.
        scratch: the folder that may be written to, and where temporary files go.
    """
    if memory is not None:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (network or files) and sys.platform == "linux":
        with contextlib.suppress(OSError):  # not everywhere allowed; the hook below holds either way
            _namespaces(network, files, scratch)
    tempfile.tempdir = str(scratch)
    global _scratch
    _scratch = os.path.realpath(scratch)
    sys.addaudithook(_refuse)


_scratch = ""


def _namespaces(network: bool, files: bool, scratch: Path) -> None:
    """Enter namespaces of our own. Raises OSError where the kernel does not allow a part of it."""
    uid, gid = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_CLONE_NEWUSER | (_CLONE_NEWNET if network else 0) | (_CLONE_NEWNS if files else 0)))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    if network:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            request = struct.pack("16sH14s", b"lo", 0, b"")
            flags = struct.unpack("16sH14s", fcntl.ioctl(one, _SIOCGIFFLAGS, request))[1]
            fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | _IFF_UP, b""))
    if files:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        _checked(_libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, len(attributes)))
        _checked(_libc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", 0, f"size={_SCRATCH_SIZE}".encode()))


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Around the runtime's own forks, and where it ends them: the target may do neither."""
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
    if _compiling:
        return
    if event in _FORBIDDEN and not (_forking and event in _OWN):
        raise PermissionError(f"the target may not use {event}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _keep_inside(arguments[0])
    elif event in _CHANGES:
        for path in arguments:
            _keep_inside(path)


def _keep_inside(path: object) -> None:
    if isinstance(path, (str, bytes)):
        text = os.fsdecode(path)
        if text != os.devnull and not f"{os.path.realpath(text)}{os.sep}".startswith(f"{_scratch}{os.sep}"):
            raise PermissionError(f"the target may not write {text}")


def die_with(parent: int) -> None:
    """End this process, just forked, when its parent ends, however that ends."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(70)


def adopt_orphans() -> None:
    """Become the parent of whatever processes below this one lose theirs."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []


def resident(pid: int) -> int:
    """Bytes of memory in use by a process or one of those below it, whichever uses most; 0 if they are gone."""
    try:
        with open(f"/proc/{pid}/statm") as statm:
            own = int(statm.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
    return max([own, *map(resident, children(pid))])


def gone(pid: int) -> bool:
    """Whether a child process has ended; it is still to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_group(pid: int) -> None:
    """End a process and those that it started."""
    for end in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


def kill_orphans(kept: set[int]) -> None:
    """End the children of this process that are not to be kept, and what those leave behind."""
    while stray := set(children(os.getpid())) - kept:
        for pid in stray:
            kill_group(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
