"""Which files of a tree do not count: what git ignores, and what the user excludes (both in gitignore's language)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

#: Folders that hold no source of the tree itself.
DEFAULT_EXCLUDE = ("__pycache__", "node_modules", "venv", ".venv", "site-packages", "build", "dist")
PROJECT_MARKERS = ("moe-lint.toml", "pyproject.toml", "setup.cfg", "setup.py")


class Patterns(Struct, frozen=True):
    """Patterns in gitignore's language, relative to a folder (an absolute path; empty: anywhere)."""

    folder: str
    lines: tuple[str, ...]


class FileFilter(Struct, frozen=True):
    """Which files count. Hidden folders never do, unless one is named on the command line."""

    exclude: tuple[Patterns, ...] = (Patterns("", DEFAULT_EXCLUDE),)
    gitignore: bool = True
    #: also leave out a file that is named on the command line (pre-commit names every file)
    force: bool = False


DEFAULT_FILES = FileFilter()


class Rules(Struct, frozen=True):
    """The patterns of one folder, compiled. A spec is None where no pattern can match."""

    base: str
    folders: GitIgnoreSpec | None
    files: GitIgnoreSpec | None

    def verdict(self, path: str, folder: bool) -> bool | None:
        """True: left out; False: taken back in by a `!` pattern; None: no pattern matches."""
        spec = self.folders if folder else self.files
        if spec is None or not path.startswith(self.base):
            return None
        relative = path[len(self.base) :].replace(os.sep, "/")
        return spec.check_file(f"{relative}/" if folder else relative).include


class Ignorer:
    """The rules for a walk that starts at a folder. Paths are absolute.

    ``above`` are the `.gitignore` rules that hold at ``start``: those of the folders above it, up to the top of the
    work tree (without git: of the project). A start that is left out itself was asked for by name: what leaves it out
    does not count.
    """

    def __init__(self, files: FileFilter, start: str) -> None:
        self._gitignore = files.gitignore
        self._plain: dict[str, list[str]] = {}
        excludes: list[Rules] = []
        for patterns in files.exclude:
            base = _base(patterns.folder)
            # a bare name is looked up; only the rest needs the library, which takes as long to load as a small run
            for line in patterns.lines:
                if is_plain(line):
                    self._plain.setdefault(line, []).append(base)
            if rest := tuple(line for line in patterns.lines if not is_plain(line)):
                excludes.append(_compiled(base, rest))
        self._excludes = [rules for rules in excludes if not rules.verdict(start, folder=True)]
        above: list[Rules] = []
        if files.gitignore:
            top = work_tree(start)
            above += _read(os.path.join(top, ".git", "info", "exclude"), top)
            for folder in _between(top, start):
                above += _read(os.path.join(folder, ".gitignore"), folder)
        self.above = tuple(rules for rules in above if not rules.verdict(start, folder=True))
        self.asks_about_files = bool(self._excludes) or any(name.endswith(".py") for name in self._plain)

    def below(self, folder: str, names: Iterable[str], rules: tuple[Rules, ...]) -> tuple[Rules, ...]:
        """The rules for the entries ``names`` of a folder: those of the folder above, and its own `.gitignore`."""
        if not self._gitignore or ".gitignore" not in names:
            return rules
        return (*rules, *_read(os.path.join(folder, ".gitignore"), folder))

    def leaves_out(self, path: str, name: str, folder: bool, rules: tuple[Rules, ...]) -> bool:
        """Whether an entry of a folder is left out; the folder itself is not."""
        if name in self._plain and any(path.startswith(base) for base in self._plain[name]):
            return True
        if any(exclude.verdict(path, folder) for exclude in self._excludes):
            return True
        for rule in reversed(rules):  # the nearest `.gitignore` has the last word
            verdict = rule.verdict(path, folder)
            if verdict is not None:
                return verdict
        return False


def is_left_out(path: str, files: FileFilter) -> bool:
    """Whether a file is left out, by itself or with a folder above it: of its work tree, or below the patterns'."""
    tops = [
        patterns.folder for patterns in files.exclude if patterns.folder and path.startswith(_base(patterns.folder))
    ]
    folder = min((work_tree(os.path.dirname(path)), *tops), key=len)
    ignorer = Ignorer(files, folder)
    rules = ignorer.above
    parts = os.path.relpath(path, folder).split(os.sep)
    for number, name in enumerate(parts, 1):
        names = [".gitignore"] if os.path.isfile(os.path.join(folder, ".gitignore")) else []
        rules = ignorer.below(folder, names, rules)
        folder = os.path.join(folder, name)
        if ignorer.leaves_out(folder, name, number < len(parts), rules):
            return True
    return False


def work_tree(folder: str) -> str:
    """The top of the git work tree around a folder, else of its project, else the folder."""
    chain = _upwards(folder)
    for markers in ((".git",), PROJECT_MARKERS):
        for one in chain:
            if any(os.path.exists(os.path.join(one, marker)) for marker in markers):
                return one
    return folder


def _upwards(folder: str) -> list[str]:
    chain = [folder]
    while (parent := os.path.dirname(chain[-1])) != chain[-1]:
        chain.append(parent)
    return chain


def _between(top: str, folder: str) -> list[str]:
    """The folders from ``top`` down to the one above ``folder``."""
    chain = _upwards(folder)
    return chain[chain.index(top) : 0 : -1] if top in chain else []


def is_plain(line: str) -> bool:
    """Whether a pattern is a bare name: it matches the files and folders of that name, at any depth."""
    return not any(character in line for character in "*?[]!#/\\ ") and bool(line)


def _base(folder: str) -> str:
    return folder if not folder or folder.endswith(os.sep) else folder + os.sep


def _read(file: str, folder: str) -> list[Rules]:
    """The rules in a file of patterns, if there is one. Bytes that are no text match nothing."""
    try:
        with open(file, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return []
    kept = tuple(line for line in lines if line.strip() and not line.startswith("#"))
    try:
        return [_compiled(_base(folder), kept)] if kept else []
    except ValueError:  # git passes over a pattern that it cannot read
        return [_compiled(_base(folder), tuple(line for line in kept if fault_of(line) is None))]


def fault_of(line: str) -> str | None:
    """Why a line is no pattern, None when it is one."""
    try:
        _spec((line,))
    except ValueError as error:
        return str(error)
    return None


def matches(path: str, patterns: Patterns) -> bool:
    """Whether a file (an absolute path), or a folder above it, matches. ``path`` has to be below the folder."""
    base = _base(patterns.folder)
    return path.startswith(base) and _spec(patterns.lines).match_file(path[len(base) :].replace(os.sep, "/"))


@lru_cache(maxsize=256)
def _spec(lines: tuple[str, ...]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _compiled(base: str, lines: tuple[str, ...]) -> Rules:
    # Thousands of files are asked about, so patterns that match no Python file are taken out first: those that end in
    # another letter, and those for folders, which were asked about before the files below them.
    for_files = [line for line in lines if (end := line.rstrip()[-1:]) == "y" or not (end.isalnum() or end == "/")]
    return Rules(base, _spec(lines), _spec(tuple(for_files)) if for_files else None)
