"""Copies of the miniature engines, with models of the test's own."""

from __future__ import annotations

import shutil
from pathlib import Path

MINI = Path(__file__).parents[2] / "fixtures" / "mini_engine"
PAIR = (MINI / "mini" / "models" / "pair.py").read_text()
#: Changes the miniature engine: settings published in groups, groups of ranks in one context, layer boundaries.
PUBLISHED = Path(__file__).parents[2] / "fixtures" / "published_engine"
STAGED = (PUBLISHED / "mini" / "models" / "staged.py").read_text()


def published(folder: Path, models: dict[str, str]) -> Path:
    """A tree of the second miniature engine with those models (name -> text) and no other."""
    engine(folder, models)
    shutil.copytree(PUBLISHED, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("models"))
    return folder


def engine(folder: Path, models: dict[str, str]) -> Path:
    """A tree with those models (name -> text) and no other."""
    shutil.copytree(MINI, folder)
    (folder / "mini" / "models" / "pair.py").unlink()
    for name, text in models.items():
        (folder / "mini" / "models" / f"{name}.py").write_text(text)
    return folder


def changed(old: str, new: str, count: int = -1) -> str:
    """The pair model with one piece of text replaced."""
    assert old in PAIR, old
    return PAIR.replace(old, new, count)
