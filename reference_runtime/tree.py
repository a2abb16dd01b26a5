"""Where the engine's package lies in a source tree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SKIP = {"node_modules", "__pycache__", "tests", "test", "docs", "benchmark", "benchmarks", "examples"}


class TreeError(Exception):
    """A path that holds no engine. The message names it."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A source tree.

    Attributes:
        root: the folder that holds the top package.
        engine: dotted name of the engine's package: the one with `models` and `layers`.
        overlay: a folder whose files stand for those of the same relative path below the root.
    """

    root: Path
    engine: str
    overlay: Path | None = None

    @property
    def package(self) -> str:
        return self.engine.partition(".")[0]

    @property
    def folder(self) -> Path:
        return self.root.joinpath(*self.engine.split("."))

    def models(self) -> list[tuple[str, Path]]:
        """(module name relative to `models`, file) of every model file."""
        base = self.folder / "models"
        found = []
        for file in sorted(base.rglob("*.py")):
            name = ".".join(file.relative_to(base).with_suffix("").parts)
            if not name.endswith("__init__"):
                found.append((name, self.current(file)))
        return found

    def argument_files(self) -> tuple[Path, ...]:
        """Where the engine's server arguments are declared."""
        places = ("server_args.py", "server_args/__init__.py", "arg_groups/fields/*.py")
        return tuple(self.current(file) for place in places for file in sorted(self.folder.glob(place)))

    def model_folders(self) -> tuple[str, ...]:
        """Where model files lie, with a separator at the end."""
        models = self.folder / "models"
        overlaid = [self.overlay / models.relative_to(self.root)] if self.overlay is not None else []
        return tuple(f"{folder}{os.sep}" for folder in (models, *overlaid))

    def current(self, file: Path) -> Path:
        """The file that stands for a file of the tree."""
        if self.overlay is not None and (other := self.overlay / file.relative_to(self.root)).is_file():
            return other
        return file

    def relative(self, file: Path) -> Path | None:
        """The path below the root of a file of the tree or of its overlay; None for any other file."""
        for folder in (self.overlay, self.root):
            if folder is not None and file.is_relative_to(folder):
                return file.relative_to(folder)
        return None


def find_tree(path: Path) -> Tree:
    """The tree at or around a path: a checkout, a package folder, or a model file inside one.

    Raises:
        TreeError: there is no folder with `models` and `layers/moe` at, above or below the path.
    """
    path = path.resolve()
    if not path.exists():
        raise TreeError(f"{path}: no such file or folder")
    for folder in (path, *path.parents):
        if _is_engine(folder):
            return _tree(folder)
    level = [path] if path.is_dir() else []
    for _ in range(5):
        engines = sorted(folder for folder in level if _is_engine(folder))
        if len(engines) > 1:
            raise TreeError(f"{path}: more than one engine: {', '.join(str(e) for e in engines)}")
        if engines:
            return _tree(engines[0])
        level = [
            d for f in level for d in sorted(f.iterdir()) if d.is_dir() and d.name[0] != "." and d.name not in _SKIP
        ]
    raise TreeError(f"{path}: no engine found (a package with `models` and `layers/moe`)")


def _is_engine(folder: Path) -> bool:
    return (folder / "models").is_dir() and (folder / "layers" / "moe").is_dir()


def _tree(folder: Path) -> Tree:
    """The top package is the highest folder in a row that is a package or holds the engine by name."""
    parts = [folder.name]
    parent = folder.parent
    while (parent / "__init__.py").is_file():
        parts.insert(0, parent.name)
        parent = parent.parent
    if len(parts) == 1:  # namespace packages: the code tells under which name it imports itself
        named = _named_by_imports(folder)
        while len(parts) < len(named):
            parts.insert(0, parent.name)
            parent = parent.parent
    return Tree(parent, ".".join(parts))


def _named_by_imports(folder: Path) -> list[str]:
    import re

    for file in sorted((folder / "models").glob("*.py")):
        match = re.search(rf"^from ((?:\w+\.)*{folder.name})\.layers", file.read_text("utf-8-sig", "replace"), re.M)
        if match:
            return match.group(1).split(".")
    return [folder.name]
