"""Paths -> Python files: what to report on, and the tree whose policy they are judged by."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "venv", ".venv", "site-packages", "build", "dist"})
_ABSOLUTE_IMPORT = re.compile(rb"^(?:from|import)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
_PROJECT_MARKERS = (".git", "pyproject.toml", "setup.cfg", "setup.py")


def python_files(folder: Path) -> Iterator[Path]:
    """Every Python file below a folder, sorted; hidden folders, environments and caches are left out."""
    yield from map(Path, python_file_names(str(folder)))


def python_file_names(folder: str) -> Iterator[str]:
    """The same as text: a tree has thousands of files, and a `Path` costs more than finding one."""
    folder = "" if folder == os.curdir else folder
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder or os.curdir) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith(".") and entry.name not in _SKIPPED_FOLDERS:
                    folders.append(entry.name)
            elif entry.name.endswith(".py") and entry.is_file():
                files.append(entry.name)
    for name in sorted(files):
        yield os.path.join(folder, name)
    for name in sorted(folders):
        yield from python_file_names(os.path.join(folder, name))


def tree_of(path: Path) -> Path:
    """The tree that gives a path its policy: the package that its own absolute imports name, or the project.

    A single model file is judged by its whole package's helper, wherever pre-commit starts the run.
    """
    absolute = path.resolve()
    folder = absolute if absolute.is_dir() else absolute.parent
    ancestors = (folder, *folder.parents)
    names = _imported_packages(absolute)
    for ancestor in reversed(ancestors):
        if ancestor.name in names:
            return ancestor
    if absolute.is_dir():
        return absolute
    for ancestor in ancestors:
        if any((ancestor / marker).exists() for marker in _PROJECT_MARKERS):
            return ancestor
    return folder


def _imported_packages(path: Path) -> set[str]:
    """First components of the absolute imports in a file, or in the first files of a folder."""
    files = [path] if path.is_file() else _some_files(path, 20)
    found: set[str] = set()
    for file in files:
        try:
            found.update(name.decode() for name in _ABSOLUTE_IMPORT.findall(file.read_bytes()))
        except OSError:
            continue
    return found


def _some_files(folder: Path, count: int) -> list[Path]:
    found: list[Path] = []
    for file in python_files(folder):
        found.append(file)
        if len(found) == count:
            break
    return found
