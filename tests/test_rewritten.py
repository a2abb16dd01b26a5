"""Rewritten files: written as they were judged, in their encoding, all of them or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moe_lint.model import UsageError
from moe_lint.rewritten import Rewritten, write_all

LATIN = "# -*- coding: latin-1 -*-\n"


@pytest.fixture
def files(tmp_path: Path) -> list[Rewritten]:
    """Two files on the disk, each with a new text."""
    first = Rewritten(str(tmp_path / "a.py"), "a = 1\n", "a = 2\n")
    second = Rewritten(str(tmp_path / "b.py"), LATIN, f"{LATIN}# é\n")
    for one in (first, second):
        Path(one.path).write_text(one.before)
    return [first, second]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_each_is_written_in_its_own_encoding_and_nothing_is_left_beside_it(
    tmp_path: Path, files: list[Rewritten]
) -> None:
    write_all(files)
    assert contents(tmp_path) == {"a.py": b"a = 2\n", "b.py": f"{LATIN}# é\n".encode("latin-1")}


def test_a_file_that_changed_meanwhile_is_not_overwritten(tmp_path: Path, files: list[Rewritten]) -> None:
    (tmp_path / "b.py").write_text("now = 2\n")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"b\.py: cannot be written: it changed while it was being judged"):
        write_all(files)
    assert contents(tmp_path) == before


def test_a_character_that_one_encoding_lacks_leaves_all_as_they_were(tmp_path: Path, files: list[Rewritten]) -> None:
    before = contents(tmp_path)
    euro = Rewritten(files[1].path, LATIN, f"{LATIN}# €\n")
    with pytest.raises(UsageError, match=r"b\.py: cannot be written: its encoding lacks a character"):
        write_all([files[0], euro])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("cause", "raised"),
    [
        (OSError(1, "Operation not permitted"), UsageError),  # told with the file's own path, not a temporary one
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["refused", "interrupted"],
)
def test_what_ends_the_writing_halfway_leaves_all_as_they_were(
    tmp_path: Path,
    files: list[Rewritten],
    monkeypatch: pytest.MonkeyPatch,
    cause: BaseException,
    raised: type[BaseException],
) -> None:
    before, rename = contents(tmp_path), os.replace
    pending = [cause]

    def halfway(source: str, target: Path) -> None:
        if target.name == "b.py" and pending:
            raise pending.pop()
        rename(source, target)

    monkeypatch.setattr(os, "replace", halfway)
    with pytest.raises(raised) as told:
        write_all(files)
    assert contents(tmp_path) == before
    if raised is UsageError:
        assert str(told.value) == f"{files[1].path}: cannot be written: Operation not permitted; no file was changed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_meanwhile_leaves_all_as_they_were(
    tmp_path: Path, files: list[Rewritten], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is full nothing can be written back either: what was there has to be at hand."""
    before, opened, full = contents(tmp_path), os.open, os.open("/dev/full", os.O_WRONLY)
    started: list[int] = []

    def filling(path: str, flags: int, mode: int = 0o777) -> int:
        handle = opened(path, flags, mode)
        started.append(handle)
        if len(started) > 1:
            os.dup2(full, handle)
        return handle

    monkeypatch.setattr(os, "open", filling)
    with pytest.raises(UsageError, match="cannot be written: No space left on device; no file was changed"):
        write_all(files)
    monkeypatch.undo()
    os.close(full)
    assert contents(tmp_path) == before
