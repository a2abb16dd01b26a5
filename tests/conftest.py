"""Settings for all tests."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import pytest

from tests.runs import FIXTURE

# what the command line does: a run builds syntax trees and drops them at the end
gc.freeze()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the pretend engine, `engine/`; the working directory."""
    shutil.copytree(FIXTURE / "engine", tmp_path / "engine")
    monkeypatch.chdir(tmp_path)
    return tmp_path
