"""Paths -> Python files: what to report on, and the tree whose policy they are judged by."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from msgspec.structs import replace

from moe_lint.ignored import DEFAULT_FILES, PROJECT_MARKERS, FileFilter, Ignorer, Rules

_RELATIVE_IMPORT = re.compile(rb"^[ \t]*from[ \t]+(\.+)", re.MULTILINE)
_ABSOLUTE_IMPORT = re.compile(rb"^(?:from|import)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)


def python_files(folder: Path, files: FileFilter = DEFAULT_FILES) -> Iterator[Path]:
    """Every Python file below a folder, sorted; what the filter leaves out is not among them."""
    yield from map(Path, python_file_names(str(folder), files))


def python_file_names(folder: str, files: FileFilter = DEFAULT_FILES) -> Iterator[str]:
    """The same as text: a tree has thousands of files, and a `Path` costs more than finding one."""
    absolute = os.path.abspath(folder)
    ignorer = Ignorer(files, absolute)
    shown = "" if folder == os.curdir else folder
    yield from _walk(shown, absolute, ignorer, ignorer.above, os.path.realpath(absolute))


def left_out(folder: str, files: FileFilter = DEFAULT_FILES) -> dict[str, str]:
    """What `python_file_names` passes over -> why. A folder without any file that counts stands for all of its files.

    Hidden folders are not told: nobody expects them.
    """
    taken = set(python_file_names(folder, files))
    unless_git = set(python_file_names(folder, replace(files, gitignore=False)))
    holders = {parent for name in taken for parent in PurePath(name).parents}
    found: dict[str, str] = {}
    for name in python_file_names(folder, FileFilter((), gitignore=False)):
        if name not in taken:
            below = [
                parent
                for parent in PurePath(name).parents
                if parent.is_relative_to(folder) and parent != PurePath(folder)
            ]
            empty = [parent for parent in below if parent not in holders]
            shown = f"{empty[-1]}{os.sep}" if empty else name
            found.setdefault(shown, "ignored by git" if name in unless_git else "excluded")
    return found


def _walk(shown: str, folder: str, ignorer: Ignorer, rules: tuple[Rules, ...], root: str) -> Iterator[str]:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        found = {entry.name: entry for entry in entries}
    rules = ignorer.below(folder, found, rules)
    ask = bool(rules) or ignorer.asks_about_files
    for name, entry in found.items():
        if entry.is_dir(follow_symlinks=False):
            if not name.startswith(".") and not ignorer.leaves_out(os.path.join(folder, name), name, True, rules):
                folders.append(name)
        elif name.endswith(".py") and _is_file(entry, root):
            if not ask or not ignorer.leaves_out(os.path.join(folder, name), name, False, rules):
                files.append(name)
    inside = os.path.join(shown, "")
    for name in sorted(files):
        yield inside + name
    for name in sorted(folders):
        yield from _walk(inside + name, os.path.join(folder, name), ignorer, rules, root)


def _is_file(entry: os.DirEntry[str], root: str) -> bool:
    """Whether an entry is a file of its own: a link to a file of the same tree is that file, met elsewhere."""
    try:
        return entry.is_file() and not (entry.is_symlink() and os.path.realpath(entry.path).startswith(root + os.sep))
    except OSError:  # a link to itself
        return False


def tree_of(path: Path) -> Path:
    """The tree that gives a path its policy: the package that its own imports name or reach, or the project.

    A single model file is judged by its whole package's helper, wherever pre-commit starts the run.
    """
    absolute = path.resolve()
    folder = absolute if absolute.is_dir() else absolute.parent
    ancestors = (folder, *folder.parents)
    names = _imported_packages(absolute)
    for ancestor in reversed(ancestors):
        if ancestor.name in names:
            return ancestor
    for ancestor in ancestors if absolute.is_file() else ():
        if any((ancestor / marker).exists() for marker in (".git", *PROJECT_MARKERS)):
            return ancestor
    return _reached_package(absolute, folder)


def _imported_packages(path: Path) -> set[str]:
    """First components of the absolute imports in a file, or in the first files of a folder."""
    return {name.decode() for _, data in _read_some(path) for name in _ABSOLUTE_IMPORT.findall(data)}


def _reached_package(path: Path, folder: Path) -> Path:
    """The top of the package that relative imports in a file (or in a folder) show, if that is around ``folder``."""
    levels = ((file, max(map(len, _RELATIVE_IMPORT.findall(data)), default=0)) for file, data in _read_some(path))
    around = [top for file, level in levels if level and folder.is_relative_to(top := file.parents[level - 1])]
    if not around:
        return folder
    top = min(around, key=lambda one: len(one.parts))
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return top


def _read_some(path: Path) -> Iterator[tuple[Path, bytes]]:
    """A file with its content, or the first files of a folder."""
    for file in [path] if path.is_file() else _some_files(path, 20):
        try:
            yield file, file.read_bytes()
        except OSError:
            continue


def _some_files(folder: Path, count: int) -> list[Path]:
    found: list[Path] = []
    for file in python_files(folder):
        found.append(file)
        if len(found) == count:
            break
    return found
