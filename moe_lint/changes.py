"""`--since REV`: what git says has changed since a revision, as line ranges of today's files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from moe_lint.model import UsageError

_HUNK = re.compile(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@")
_DEFINITION = re.compile(r"\s*(?:async\s+)?(?:def|class)\s+(\w+)")
#: What git says of a folder without a work tree. Another reason (an owner whom it does not trust) is told as it is.
_NO_REPOSITORY, _NO_WORK_TREE = "not a git repository", "must be run in a work tree"
_IS_SHALLOW = ("rev-parse", "--is-shallow-repository")
#: A line number past the end of any file.
_END = 1 << 30


class Changes(Struct, frozen=True):
    """Line ranges (first and last, from 1) by absolute path.

    Where lines were only taken away, the two lines around the gap stand for them. ``removed`` are the names whose
    ``def`` or ``class`` line is gone from where it stood.
    """

    files: Mapping[str, tuple[tuple[int, int], ...]]
    removed: frozenset[str] = frozenset()
    #: what the tool itself goes by (its configuration, the profile) has changed
    everything: bool = field(default=False)

    def overlap(self, path: str, first: int, last: int) -> bool:
        """Whether a line of the range has changed."""
        return any(start <= last and first <= end for start, end in self.files.get(path, ()))


def changes_since(revision: str, paths: Iterable[str]) -> Changes:
    """What differs between the files now (committed or not) and the point where their branch left ``revision``.

    Files that git does not track yet are new as a whole. Raises ``UsageError`` for a revision or a work tree that does
    not exist.
    """
    files: dict[str, tuple[tuple[int, int], ...]] = {}
    removed: set[str] = set()
    for top in dict.fromkeys(_work_tree(path) for path in paths):
        base = _base(top, revision)
        patterns = ("--", "*.py", "*.toml", "*.cfg")
        options = ("--unified=0", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
        prefixes = ("--src-prefix=a/", "--dst-prefix=b/")
        try:
            found, gone = parse_diff(_git(top, "diff", *options, *prefixes, base, *patterns))
            new = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--full-name", *patterns).split("\0")
        except _GitError as error:  # a damaged index or object
            raise UsageError(f"--since: git cannot tell what has changed in {top}: {error}") from None
        for name, ranges in {**found, **dict.fromkeys(filter(None, new), ((1, _END),))}.items():
            files[os.path.join(top, *name.split("/"))] = ranges
        removed |= gone
    return Changes(files, frozenset(removed))


def parse_diff(text: str) -> tuple[dict[str, tuple[tuple[int, int], ...]], frozenset[str]]:
    """(path -> changed ranges of the new file, names whose definition lines went away) of `git diff --unified=0`."""
    files: dict[str, list[tuple[int, int]]] = {}
    removed: set[str] = set()
    added: set[str] = set()
    current: list[tuple[int, int]] | None = None
    left = 0  # lines of the hunk still to come, so that a line like "+++ x" is not taken for a header
    for line in text.split("\n"):
        if left and line[:1] in ("+", "-"):
            left -= 1
            if definition := _DEFINITION.match(line[1:]):
                (added if line[0] == "+" else removed).add(definition[1])
        elif line.startswith("+++ "):
            path = _path(line[4:])
            current = files.setdefault(path, []) if path is not None else None
        elif hunk := _HUNK.match(line):
            old = re.match(r"@@ -\d+(?:,(\d+))? ", line)
            first, count = int(hunk[1]), int(hunk[2] or 1)
            left = count + int((old[1] if old is not None else None) or 1)
            if current is not None:
                current.append((first, first + count - 1) if count else (max(first, 1), first + 1))
    return {path: tuple(ranges) for path, ranges in files.items()}, frozenset(removed - added)


def _path(shown: str) -> str | None:
    """The path in a header line; git quotes one with odd characters. None for a file that is gone."""
    shown = shown.removesuffix("\t")
    if shown.startswith('"'):
        shown = os.fsdecode(ast.literal_eval(f"b{shown}"))
    return None if shown == "/dev/null" else shown.removeprefix("b/")


def _work_tree(path: str) -> str:
    absolute = os.path.realpath(path)
    folder = absolute if os.path.isdir(absolute) else os.path.dirname(absolute)
    if not os.path.isdir(folder):
        raise UsageError(f"{path}: no such file or directory")
    try:
        return os.path.realpath(_git(folder, "rev-parse", "--show-toplevel").rstrip("\n"))
    except _GitError as error:
        told = str(error).removeprefix("fatal: ")
        known = _NO_REPOSITORY in told or _NO_WORK_TREE in told
        raise UsageError(f"--since: {path} is in no git work tree{'' if known else f': {told}'}") from None


def _base(top: str, revision: str) -> str:
    try:
        commit = _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    except _GitError:
        hint = "; it is a shallow clone: fetch more" if _git(top, *_IS_SHALLOW).strip() == "true" else ""
        raise UsageError(f"--since: there is no revision {revision!r} in {top}{hint}") from None
    try:
        return _git(top, "merge-base", commit, "HEAD").strip()
    except _GitError:  # no common history, as in a shallow clone, or no commit yet
        return commit


class _GitError(Exception):
    """git ended with an error; the text is its first line."""


def _git(folder: str, *arguments: str) -> str:
    command = ["git", "-C", folder, "-c", "core.quotePath=true", *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    if "GIT_WORK_TREE" not in environment:  # a hook of a linked work tree: git would take every folder for its top
        environment.pop("GIT_DIR", None)
    try:
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
    except OSError as error:
        raise UsageError(f"--since: git cannot be run: {error.strerror or error}") from None
    if done.returncode:
        raise _GitError(os.fsdecode(done.stderr).partition("\n")[0])
    return os.fsdecode(done.stdout)
