"""Replace files at once: a reader sees the old bytes or the new ones, never a part; of several files, all or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def replace_file(path: str | Path, *data: bytes | memoryview) -> None:
    """Write ``data``, one after the other, as the file's whole content.

    Keeps the mode of a file that exists, and a symlink to it.

    Raises ``OSError`` when it cannot; the file is then as it was. What is no regular file (a pipe, `/dev/null`) cannot
    be replaced and is written to.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        mode = stat.S_IFREG | (0o666 & ~umask)
    if not stat.S_ISREG(mode) or str(path).startswith("/dev/"):  # `/dev/stdout` may be a file, and has to stay that one
        with open(path, "wb") as stream:
            stream.writelines(data)
        return
    target = Path(path).resolve()
    with _beside(target, mode, *data) as temporary:
        os.replace(temporary, target)


def replace_files(files: Iterable[tuple[str, bytes, bytes]]) -> None:
    """Give files, each (path, what it holds, what it is to hold), their new content: all of them, or none.

    Old and new content are on the disk before the first file is replaced. So whatever ends this early, a full disk or
    an interrupt, is undone by renaming. Modes and symlinks are kept.

    Raises ``OSError``, with the path of the file that cannot be replaced as it was given.
    """
    with ExitStack() as temporaries:
        staged = []
        for path, *contents in files:
            with _blamed_on(path):
                target, mode = Path(path).resolve(), os.stat(path).st_mode
                old, new = (temporaries.enter_context(_beside(target, mode, data)) for data in contents)
                staged.append((path, target, old, new))
        begun: list[tuple[Path, Path]] = []
        try:
            for path, target, old, new in staged:
                begun.append((old, target))
                with _blamed_on(path):
                    os.replace(new, target)
        except BaseException:
            for old, target in begun:
                os.replace(old, target)
            raise


@contextmanager
def _beside(target: Path, mode: int, *data: bytes | memoryview) -> Iterator[Path]:
    """A temporary file with ``data`` in the folder of another, by its path; what is left of it at the end goes."""
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    # as `tempfile` does it, which takes longer to load than to write: a file of its own that nobody else may read yet
    stream = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    try:
        with stream:
            stream.writelines(data)
        os.chmod(temporary, stat.S_IMODE(mode))
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def _blamed_on(path: str) -> Iterator[None]:
    """Name a file by the path that the caller knows, not by that of a temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
