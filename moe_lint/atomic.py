"""Replace a file at once: a reader sees the old bytes or the new ones, never a part."""

from __future__ import annotations

import os
import stat
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
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    # as `tempfile` does it, which takes longer to load than to write: a file of its own that nobody else may read yet
    stream = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    try:
        with stream:
            stream.writelines(data)
        os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
