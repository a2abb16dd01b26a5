"""Judgements on disk: a tree that has not changed is not judged again.

A judgement is kept with what it depends on: the tool, the options and the profile (its key), which Python files the
tree has, and the content of those that were searched or parsed. A file's stamp (size, times, inode) saves reading it;
where the stamp differs, or is so young that a later change could have left it as it is, the content decides. What
cannot be read back is a miss. Entries are replaced at once, so concurrent runs see whole ones.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from msgspec import MsgspecError, Struct, msgpack

from moe_lint.atomic import replace_file
from moe_lint.model import Judgement, UsageError
from moe_lint.prefilter import Prefilter, read_bytes

_FORMAT = 2
_SUFFIX = ".judgement"
#: Nanoseconds: two writes to a file closer than this may leave the same times behind.
_CLOCK = 2_000_000_000
#: Seconds after which an entry that nobody used is removed.
_EXPIRY = 30 * 24 * 3600
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache directory of moe-lint.\n"

Stamp = tuple[int, int, int, int]


class _Entry(Struct, frozen=True, array_like=True):
    """One file of the cache. A manifest maps a path to its stamp and, for a file that matters, its content's digest."""

    version: int
    written: int
    manifest: dict[str, tuple[Stamp, bytes | None]]
    judgement: Judgement


class Cache(Struct, frozen=True):
    """A folder of judgements. ``required``: the user named it, so it must be possible to write there."""

    folder: Path
    required: bool = False

    def load(self, key: str, paths: Iterable[str], prefilter: Prefilter) -> Judgement | None:
        """The judgement on a tree with these files, if nothing that it depends on has changed."""
        path_of_entry = self.folder / f"{key}{_SUFFIX}"
        try:
            entry = msgpack.decode(path_of_entry.read_bytes(), type=_Entry)
        except (OSError, MsgspecError, RecursionError):  # damaged, of another version, or not there: all the same
            return None
        if entry.version != _FORMAT:
            return None
        manifest = entry.manifest
        wanted = list(paths)
        if len(manifest) != len(wanted):
            return None
        renewed: dict[str, tuple[Stamp, bytes | None]] = {}
        now = time.time_ns()
        for path in wanted:
            if path not in manifest:
                return None
            old, digest = manifest[path]
            try:
                stamp = _stamp(path)
                if stamp == old and max(stamp[1:3]) < entry.written - _CLOCK:
                    continue
                data = read_bytes(path)
            except OSError:
                return None
            if prefilter.is_candidate(data) if digest is None else _digest(data) != digest:
                return None
            if stamp != old or max(stamp[1:3]) < now - _CLOCK:
                renewed[path] = (stamp, digest)
        if renewed:
            self._write(path_of_entry, now, {**manifest, **renewed}, entry.judgement)
        return entry.judgement

    def store(self, key: str, paths: Iterable[str], stamps: Mapping[str, Stamp], judgement: Judgement) -> None:
        """Keep a judgement. ``stamps`` were taken before the files were read. Raises ``UsageError``, see `required`."""
        manifest: dict[str, tuple[Stamp, bytes | None]] = {}
        try:
            for path in paths:
                manifest[path] = (stamps[path], _digest(read_bytes(path)) if path in judgement.relevant else None)
                if path in judgement.relevant and _stamp(path) != stamps[path]:
                    return  # changed while it was judged
        except (OSError, KeyError):
            return
        self._write(self.folder / f"{key}{_SUFFIX}", time.time_ns(), manifest, judgement)

    def _write(
        self, entry: Path, written: int, manifest: Mapping[str, tuple[Stamp, bytes | None]], judgement: Judgement
    ) -> None:
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)  # another run may have made it by now
                (self.folder / "CACHEDIR.TAG").write_text(_TAG, encoding="utf-8")
                (self.folder / ".gitignore").write_text("*\n", encoding="utf-8")
            replace_file(entry, msgpack.encode(_Entry(_FORMAT, written, dict(manifest), judgement)))
            self._expire(written)
        except UnicodeEncodeError:
            return  # a name that is no text: such a tree is judged each time
        except OSError as error:
            if self.required:
                raise UsageError(f"{self.folder}: the cache cannot be written: {error.strerror or error}") from None

    def _expire(self, now: int) -> None:
        for old in self.folder.glob(f"*{_SUFFIX}"):
            if now / 1e9 - old.stat().st_mtime > _EXPIRY:
                old.unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove every judgement. Returns how many there were. Raises ``OSError``."""
        entries = list(self.folder.glob(f"*{_SUFFIX}"))
        for entry in entries:
            entry.unlink(missing_ok=True)
        return len(entries)


def stamps(paths: Iterable[str]) -> dict[str, Stamp]:
    """The stamps of files; those that cannot be looked at are left out."""
    found: dict[str, Stamp] = {}
    for path in paths:
        try:
            found[path] = _stamp(path)
        except OSError:
            continue
    return found


def key_of(*parts: object) -> str:
    """The name of an entry: the tool as it is installed, the Python that runs it, and whatever else decides."""
    package = Path(__file__).parent
    tool = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in package.rglob("*.py"))
    return _digest(repr((sys.version_info[:3], tool, parts)).encode()).hex()


def _stamp(path: str) -> Stamp:
    info = os.stat(path)
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
