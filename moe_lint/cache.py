"""Judgements on disk: a tree that has not changed is not judged again, a file that has not changed is not read again.

A judgement is kept with what it depends on: the tool, the options and the profile (its key), which Python files the
tree has, and the content of those that were searched or parsed. A file's stamp (size, times, inode) saves reading it;
where the stamp differs, or is so young that a later change could have left it as it is, the content decides. Beside it
lies what was found out about each file, for the next judgement of the tree; it depends on the file's content, the tool
and the profile alone. The launch configurations that were looked for depend on less, and lie there, too. What cannot be
read back is a miss. Entries are replaced at once, so concurrent runs see whole ones.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from msgspec import MsgspecError, Struct, msgpack
from msgspec.structs import replace

from moe_lint.atomic import replace_file
from moe_lint.kept import Kept, Unchanged
from moe_lint.launch import Configurations
from moe_lint.model import Judgement, UsageError
from moe_lint.prefilter import DIGEST_SIZE, Prefilter, digest_of, read_bytes

_FORMAT = 12
_SUFFIX = ".judgement"
_FILES = ".files"
#: Bytes that tell how long an entry is, before it.
_LENGTH = 8
#: Nanoseconds: two writes to a file closer than this may leave the same times behind.
_CLOCK = 2_000_000_000
#: Seconds after which an entry that nobody used is removed.
_EXPIRY = 30 * 24 * 3600
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache directory of moe-lint.\n"

Stamp = tuple[int, int, int, int]


class _Entry(Struct, frozen=True, array_like=True):
    """A judgement. The manifest maps a path to its stamp and, for a file that matters, its content's digest."""

    version: int
    written: int
    manifest: dict[str, tuple[Stamp, bytes | None]]
    judgement: Judgement


class _Files(Struct, frozen=True, array_like=True):
    """Path -> the digest of a file's content, whether it is a candidate, how long its searches and its facts are.

    That itself lies behind, file by file, so that it is neither copied nor put together: it is the larger part by far.
    ``configurations`` are those that were looked for: they depend on the profile alone.
    """

    version: int
    files: dict[str, tuple[bytes, bool, int, int | None]]
    configurations: Configurations


_Stored = TypeVar("_Stored", _Entry, _Files)


class Loaded(Struct, frozen=True):
    """What was found when a tree's files were looked at, before any of them was read."""

    #: path -> stamp of every file that could be looked at
    stamps: dict[str, Stamp]
    #: path -> digest of a file that is as it was; None for one without any word of the engine
    digests: dict[str, bytes | None]
    #: the files that are as they were by their stamps: they were not read
    unread: set[str]
    judgement: Judgement | None = None


class Cache(Struct, frozen=True):
    """A folder of judgements. ``required``: the user named it, so it must be possible to write there."""

    folder: Path
    required: bool = False

    def load(self, key: str, paths: Iterable[str], prefilter: Prefilter) -> Loaded:
        """The judgement on a tree with these files, if nothing that it depends on has changed, and what has not."""
        read = self._read(f"{key}{_SUFFIX}", _Entry)
        entry = read[0] if read is not None else None
        manifest = entry.manifest if entry is not None else {}
        written = entry.written if entry is not None else 0
        found = Loaded({}, {}, set())
        renewed = False
        wanted = list(paths)
        for path in wanted:
            try:
                stamp = found.stamps[path] = _stamp(path)
                if path not in manifest:
                    continue
                old, digest = manifest[path]
                if stamp == old and max(stamp[1:3]) < written - _CLOCK:
                    found.digests[path] = digest
                    found.unread.add(path)
                    continue
                data = read_bytes(path)
            except OSError:
                continue
            changed = prefilter.is_candidate(data) if digest is None else digest_of(data) != digest
            if not changed:
                found.digests[path] = digest
                renewed = renewed or stamp != old or max(stamp[1:3]) < time.time_ns() - _CLOCK
        if entry is None or manifest.keys() != found.digests.keys() or len(manifest) != len(wanted):
            return found
        if renewed:
            stamped = {path: (found.stamps[path], digest) for path, digest in found.digests.items()}
            now = time.time_ns()
            self._write(key + _SUFFIX, now, _Entry(_FORMAT, now, stamped, entry.judgement))
        return replace(found, judgement=entry.judgement)

    def unchanged(self, key: str, found: Loaded) -> Unchanged:
        """What is known of the files that are as they were when they were looked at."""
        digests = found.digests
        dull = frozenset(path for path, digest in digests.items() if digest is None)
        read = self._read(f"{key}{_FILES}", _Files) if digests else None
        files: dict[str, Kept] = {}
        configurations: Configurations = {}
        if read is not None:
            kept, rest = read
            configurations = kept.configurations
            for path, (digest, candidate, searches, facts) in kept.files.items():
                end = searches + (facts or 0)
                if digests.get(path) == digest:
                    of_facts = rest[searches:end] if facts is not None else None
                    files[path] = Kept(digest, candidate, rest[:searches], of_facts)
                rest = rest[end:]
        return Unchanged(dull, files, found.unread, configurations)

    def store(
        self,
        keys: tuple[str, str],
        paths: Iterable[str],
        stamps: Mapping[str, Stamp],
        judgement: Judgement,
        found: Mapping[str, Kept],
        configurations: Configurations,
    ) -> None:
        """Keep a judgement, and what was found out about files and launch configurations, under a key each.

        ``stamps`` are those that `load` found. Raises ``UsageError``, see `required`.
        """
        manifest: dict[str, tuple[Stamp, bytes | None]] = {}
        files: dict[str, Kept] = {}
        try:
            for path in paths:
                if path not in judgement.relevant:
                    manifest[path] = (stamps[path], None)
                    continue
                if path in found:
                    files[path] = found[path]
                digest = found[path].digest if path in found else digest_of(read_bytes(path))
                manifest[path] = (stamps[path], digest)
                if _stamp(path) != stamps[path]:
                    return  # changed while it was judged
        except (OSError, KeyError):
            return
        now = time.time_ns()
        self._write(keys[0] + _SUFFIX, now, _Entry(_FORMAT, now, manifest, judgement))
        sizes = {
            path: (kept.digest, kept.candidate, len(kept.searches), None if kept.facts is None else len(kept.facts))
            for path, kept in files.items()
        }
        parts = (part for kept in files.values() for part in (kept.searches, kept.facts) if part is not None)
        self._write(keys[1] + _FILES, now, _Files(_FORMAT, sizes, configurations), *parts)

    def _read(self, name: str, kind: type[_Stored]) -> tuple[_Stored, memoryview] | None:
        """An entry, and what lies behind it."""
        try:
            data = memoryview((self.folder / name).read_bytes())
            data, digest = data[DIGEST_SIZE:], data[:DIGEST_SIZE]
            if digest_of(data) != digest:
                return None
            end = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
            entry = msgpack.decode(data[_LENGTH:end], type=kind)
        except (OSError, MsgspecError, RecursionError):  # damaged, of another version, or not there: all the same
            return None
        return (entry, data[end:]) if entry.version == _FORMAT else None

    def _write(self, name: str, now: int, entry: _Entry | _Files, *behind: memoryview) -> None:
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)  # another run may have made it by now
                (self.folder / "CACHEDIR.TAG").write_text(_TAG, encoding="utf-8")
                (self.folder / ".gitignore").write_text("*\n", encoding="utf-8")
            data = msgpack.encode(entry)
            parts: list[bytes | memoryview] = [len(data).to_bytes(_LENGTH, "big"), data, *behind]
            replace_file(self.folder / name, digest_of(*parts), *parts)
            self._expire(now)
        except UnicodeEncodeError:
            return  # a name that is no text: such a tree is judged each time
        except OSError as error:
            if self.required:
                raise UsageError(f"{self.folder}: the cache cannot be written: {error.strerror or error}") from None

    def _entries(self) -> list[Path]:
        """Raises ``OSError``: `glob` finds nothing in a folder that cannot be read."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [self.folder / name for name in names if name.endswith((_SUFFIX, _FILES))]

    def _expire(self, now: int) -> None:
        for old in self._entries():
            with suppress(FileNotFoundError):  # another run may do the same
                if now / 1e9 - old.stat().st_mtime > _EXPIRY:
                    old.unlink()

    def clear(self) -> int:
        """Remove everything that is kept. Returns how many judgements there were. Raises ``OSError``."""
        entries = self._entries()
        for entry in entries:
            entry.unlink(missing_ok=True)
        return sum(entry.suffix == _SUFFIX for entry in entries)


def key_of(*parts: object) -> str:
    """The name of an entry: the tool as it is installed, the Python that runs it, and whatever else decides."""
    return digest_of(repr((sys.version_info[:3], _tool(), parts)).encode()).hex()


@lru_cache(maxsize=1)
def _tool() -> list[tuple[str, int, int]]:
    files = ((folder, name) for folder, _, names in os.walk(os.path.dirname(__file__)) for name in names)
    stamps = ((name, os.stat(os.path.join(folder, name))) for folder, name in files if name.endswith(".py"))
    return sorted((name, info.st_size, info.st_mtime_ns) for name, info in stamps)


def _stamp(path: str) -> Stamp:
    info = os.stat(path)
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino
