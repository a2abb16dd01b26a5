"""Settings for all tests."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from tests.runs import FIXTURE
from tests.trees import FORGETFUL, write_tree

# what the command line does: a run builds syntax trees and drops them at the end
gc.freeze()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the pretend engine, `engine/`; the working directory."""
    shutil.copytree(FIXTURE / "engine", tmp_path / "engine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `engine/`, whose one model forgets two reasons; the working directory."""
    write_tree(tmp_path, FORGETFUL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep no judgement of a test beyond it."""
    monkeypatch.setenv("MOE_LINT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
