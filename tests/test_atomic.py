"""Files are replaced at once, or left as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from moe_lint.atomic import replace_file


def test_a_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    replace_file(tmp_path / "new", b"x")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "new").read_bytes() == b"x"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_old_file_keeps_its_mode_and_its_symlink(tmp_path: Path) -> None:
    old, link = tmp_path / "old", tmp_path / "link"
    old.write_bytes(b"before")
    old.chmod(0o640)
    link.symlink_to(old)
    replace_file(link, b"after")
    assert link.is_symlink()
    assert (old.read_bytes(), stat.S_IMODE(old.stat().st_mode)) == (b"after", 0o640)


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "old").write_bytes(b"before")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "old", b"after")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old", b"before")]


def test_what_is_no_regular_file_is_written_to() -> None:
    replace_file(os.devnull, b"x")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
