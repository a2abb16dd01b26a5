"""Kept judgements: the same answer as judging anew, and never an old one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import pytest

from moe_lint import cache, engine, reading
from moe_lint.cache import Cache
from moe_lint.engine import Options, run
from moe_lint.facts import FileFacts
from moe_lint.formula import Formula
from moe_lint.launch import Configuration, Space
from moe_lint.model import Report
from moe_lint.profile import load_profile
from tests.runs import EXPECTED, findings, moe_lint
from tests.trees import ROUTED, write_tree

HELPER = "engine/layers/moe/utils.py"

PROFILE = load_profile("sglang")


@pytest.fixture
def judged(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Report, bool]]:
    """Checks the tree with a cache: (the report, whether the tree was judged anew)."""
    cache = Cache(tree / "cache")
    calls: list[int] = []
    original = engine._judged

    def counted(*args: object) -> object:
        calls.append(1)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_judged", counted)
    for path in (tree / "engine").rglob("*"):
        _age(path)

    def check(*paths: str, select: tuple[str, ...] = ()) -> tuple[Report, bool]:
        calls.clear()
        report = run(Options(paths or ("engine",), PROFILE, select, cache=cache))
        assert report == run(Options(paths or ("engine",), PROFILE, select)), "the cache changes an answer"
        return report, len(calls) > 1

    return check


def _age(path: Path) -> None:
    """Make a file look as if it had been written a minute ago."""
    os.utime(path, (time.time() - 60, time.time() - 60))


Judged = Callable[..., tuple[Report, bool]]


def test_a_second_run_judges_nothing(judged: Judged) -> None:
    assert judged()[1]
    report, anew = judged()
    assert not anew
    assert [(Path(f.path).name, f.span.line, f.rule) for f in report.findings] == EXPECTED


def test_every_file_of_a_judged_tree_is_answered_for(judged: Judged) -> None:
    judged()
    report, anew = judged("engine/models/pair.py", "engine/models/right.py")
    assert not anew
    assert {f.rule for f in report.findings} == {"MOE001", "MOE101"}
    assert report.files == 2


def test_a_changed_site_is_judged_again(judged: Judged, tree: Path) -> None:
    judged()
    path = tree / "engine/models/unguarded.py"
    path.write_text(path.read_text().replace("tensor_model_parallel_all_reduce(", "no_reduction("))
    report, anew = judged()
    assert anew
    assert "unguarded.py" not in {Path(f.path).name for f in report.findings}


def test_a_changed_helper_has_its_users_judged_again(judged: Judged, tree: Path) -> None:
    judged()
    path = tree / HELPER
    path.write_text(path.read_text().replace("def should_skip_post_experts_all_reduce", "def renamed"))
    assert judged()[1]


def test_a_change_that_keeps_size_and_time_is_seen(judged: Judged, tree: Path) -> None:
    judged()
    path = tree / "engine/models/unguarded.py"
    before = path.stat()
    path.write_text(path.read_text().replace("all_reduce(", "all_reducX("))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert judged()[1]


def test_touching_a_file_changes_nothing(judged: Judged, tree: Path) -> None:
    judged()
    os.utime(tree / "engine/models/unguarded.py")
    assert not judged()[1]
    assert not judged()[1]


def test_a_new_file_and_a_removed_one_count(judged: Judged, tree: Path) -> None:
    judged()
    new = tree / "engine/models/new.py"
    new.write_text((tree / "engine/models/unguarded.py").read_text())
    report, anew = judged()
    assert anew
    assert "new.py" in {Path(f.path).name for f in report.findings}
    new.unlink()
    assert judged()[1]


def test_a_file_without_any_word_of_the_engine_does_not_count(judged: Judged, tree: Path) -> None:
    other = tree / "engine/other.py"
    other.write_text("x = 1\n")
    judged()
    other.write_text("x = 2\n")
    assert not judged()[1]
    other.write_text("def f(x):\n    return tensor_model_parallel_all_reduce(x)\n")
    assert judged()[1]


def test_other_rules_and_other_profiles_have_other_judgements(judged: Judged, tree: Path) -> None:
    judged()
    assert judged(select=("MOE002",))[1]
    assert not judged(select=("MOE002",))[1]
    own = tree / "own.toml"
    own.write_text('extends = "sglang"\nname = "own"\n[collectives]\nno_such_reduce = "TP"\n')
    cache = Cache(tree / "cache")
    before = len(list((tree / "cache").glob("*.judgement")))
    run(Options(("engine",), load_profile(str(own)), cache=cache))
    assert len(list((tree / "cache").glob("*.judgement"))) == before + 1


@pytest.mark.parametrize(
    "damage", [b"", b"\x94\x02", b"garbage", *map(msgspec.msgpack.encode, (["?", 1], [2, 2, {}, 3], [1, 2, {}, {}]))]
)
def test_a_damaged_entry_is_a_miss(judged: Judged, tree: Path, damage: bytes) -> None:
    judged()
    (entry,) = (tree / "cache").glob("*.judgement")
    entry.write_bytes(damage)
    assert judged()[1]
    assert not judged()[1]


def read_anew(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose text is read and parsed from now on."""
    names: list[str] = []
    read = FileFacts._read_top_level
    monkeypatch.setattr(FileFacts, "_read_top_level", lambda facts: (names.append(Path(facts.path).name), read(facts)))
    return names


def test_of_a_tree_in_which_a_file_has_changed_only_that_one_is_read_again(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(("engine",), PROFILE, cache=Cache(tree / "cache"))
    names = read_anew(monkeypatch)
    run(options)
    assert {"utils.py", "unguarded.py"} < set(names)
    names.clear()
    path = tree / "engine/models/unguarded.py"
    path.write_text("\n\n" + path.read_text().replace("class ", "class A", 1))
    report = run(options)
    assert names == ["unguarded.py"]
    names.clear()
    assert report == run(Options(("engine",), PROFILE))
    assert len(names) > 1


def test_a_launch_configuration_is_looked_for_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Formula, tuple[str, ...]]] = []
    find = Space.find

    def watched(self: Space, formula: Formula, larger: Iterable[str] = ()) -> Configuration | None:
        asked.append((formula, tuple(larger)))
        return find(self, formula, larger)

    monkeypatch.setattr(Space, "find", watched)
    options = Options(("engine",), PROFILE, cache=Cache(tree / "cache"))
    first = run(options)
    assert asked
    assert len(set(asked)) == len(asked)
    asked.clear()
    path = tree / "engine/models/unguarded.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert run(options).findings == first.findings
    assert asked == []


def test_what_a_changed_file_makes_of_the_profile_counts_in_the_others(tmp_path: Path) -> None:
    """A class that derives from an absorber is one, and a collective that no file names is none."""
    tree = write_tree(tmp_path, ROUTED)
    layer, own = tree / "models" / "x.py", tree / "layers" / "own.py"
    unforwarded = layer.read_text().replace("use_reduce_scatter=scatter, ", "")
    layer.write_text(unforwarded.replace("LayerCommunicator", "OwnLayers").replace("communicator import", "own import"))
    own.write_text("class OwnLayers(Plain):\n    communicator = LayerCommunicator\n")
    options, anew = (Options((str(tree),), PROFILE, cache=cache) for cache in (Cache(tmp_path / "cache"), None))
    assert run(options) == run(anew)
    base = "from engine.layers.communicator import LayerCommunicator\n"
    own.write_text(f"{base}\n\nclass OwnLayers(LayerCommunicator):\n    pass\n")
    assert {finding.rule for finding in run(anew).findings} == {"MOE201"}
    assert run(options) == run(anew)


def test_other_rules_read_no_file_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tree / "cache")
    run(Options(("engine",), PROFILE, cache=cache))
    run(Options(("engine",), PROFILE, select=("MOE001",), cache=cache))
    path = tree / "engine/models/unguarded.py"
    path.write_text("\n\n" + path.read_text())
    names = read_anew(monkeypatch)
    run(Options(("engine",), PROFILE, select=("MOE002",), cache=cache))
    assert "unguarded.py" in names
    names.clear()
    path.write_text("\n" + path.read_text())
    run(Options(("engine",), PROFILE, select=("MOE001",), cache=cache))
    assert names == ["unguarded.py"]


def test_the_texts_of_other_files_are_not_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every rule has asked them is known."""
    monkeypatch.setattr(cache, "_CLOCK", -(10**12))
    options = Options(("engine",), PROFILE, select=("ALL",), cache=Cache(tree / "cache"))
    run(options)
    names: list[str] = []
    read = reading._read_late

    def watched(path: str, digest: bytes) -> str:
        names.append(Path(path).name)
        return read(path, digest)

    monkeypatch.setattr(reading, "_read_late", watched)
    path = tree / "engine/models/unguarded.py"
    path.write_text(f"{path.read_text()}# changed\n")
    run(options)
    assert set(names) == {"utils.py"}  # it holds a comment of moe-lint's


@pytest.mark.parametrize("damage", [b"", b"garbage" * 9, "swapped", "cut"])
def test_damaged_facts_are_a_miss(
    judged: Judged, tree: Path, damage: bytes | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged()
    (entry,) = (tree / "cache").glob("*.files")
    data = bytearray(entry.read_bytes())
    if isinstance(damage, bytes):
        data = bytearray(damage)
    elif damage == "cut":
        del data[-1]
    else:
        data[len(data) // 2] ^= 1
    entry.write_bytes(data)
    path = tree / "engine/models/unguarded.py"
    path.write_text(f"{path.read_text()}# changed\n")
    names = read_anew(monkeypatch)
    assert judged()[1]
    assert names.count("utils.py") == 2  # with the cache, and without it


def _changed_while_it_is_judged(tree: Path, monkeypatch: pytest.MonkeyPatch, added: str) -> tuple[Report, Report]:
    """A run with the cache after text is added to a file, while another changes; and what it would have been before."""
    options = Options(("engine",), PROFILE, cache=Cache(tree / "cache"))
    for path in (tree / "engine").rglob("*"):
        _age(path)
    run(options)
    changing, other = tree / "engine/models/unguarded.py", tree / "engine/models/pair.py"
    other.write_text(other.read_text() + added)
    as_it_was = run(Options(("engine",), PROFILE))
    load = Cache.load

    def late(*args: object) -> object:
        found = load(*args)  # type: ignore[arg-type]
        changing.write_text("\n\n\n" + changing.read_text())
        return found

    monkeypatch.setattr(Cache, "load", late)
    report = run(options)
    monkeypatch.setattr(Cache, "load", load)
    return report, as_it_was


@pytest.mark.parametrize("clock", [cache._CLOCK, -(10**12)], ids=["by its content", "by its stamp"])
def test_a_file_that_changes_after_it_was_looked_at_is_read_as_it_is(
    tree: Path, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    """What was kept is of another content then; and the judgement is not kept."""
    monkeypatch.setattr(cache, "_CLOCK", clock)
    # whoever calls that method is looked for in all texts
    added = "\n\nclass Other:\n    def summed_late(self, x):\n        return tensor_model_parallel_all_reduce(x)\n"
    report, _ = _changed_while_it_is_judged(tree, monkeypatch, added)
    kept = run(Options(("engine",), PROFILE, cache=Cache(tree / "cache")))
    assert report == run(Options(("engine",), PROFILE)) == kept


def test_a_file_that_changes_after_it_was_looked_at_and_is_not_read_is_judged_as_it_was(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its stamp; the judgement is not kept."""
    monkeypatch.setattr(cache, "_CLOCK", -(10**12))
    report, as_it_was = _changed_while_it_is_judged(tree, monkeypatch, "# changed\n")
    assert report == as_it_was
    kept = run(Options(("engine",), PROFILE, cache=Cache(tree / "cache")))
    assert as_it_was != run(Options(("engine",), PROFILE)) == kept


def test_a_text_that_was_first_seen_in_an_editor_is_kept_when_it_is_saved(tree: Path) -> None:
    options = Options(("engine",), PROFILE, cache=Cache(tree / "cache"), known={})
    path = tree / "engine/models/unguarded.py"
    text = f"{path.read_text()}# saved\n"
    run(options, {str(path.resolve()): text})
    path.write_text(text)
    for file in (tree / "engine").rglob("*"):
        _age(file)
    report = run(options)
    (entry,) = (tree / "cache").glob("*.judgement")
    before = entry.stat().st_mtime_ns
    assert run(options) == report
    assert entry.stat().st_mtime_ns == before  # nothing was judged again


def test_a_file_that_cannot_be_read_is_told_again(tree: Path) -> None:
    options = Options(("engine",), PROFILE, cache=Cache(tree / "cache"))
    run(options)
    (tree / "engine/models/gone.py").symlink_to("nowhere.py")
    assert [p.reason for p in run(options).problems] == [p.reason for p in run(options).problems]
    assert run(options) == run(Options(("engine",), PROFILE))


def test_a_syntax_error_is_told_again_from_the_cache(judged: Judged, tree: Path) -> None:
    path = tree / "engine/models/unguarded.py"
    path.write_text(path.read_text() + "\ndef broken(:\n")
    _age(path)
    assert judged()[1]
    report, anew = judged()
    assert not anew
    assert report.exit_code == 2


def test_a_named_file_is_parsed_although_the_tree_is_known(judged: Judged, tree: Path) -> None:
    other = tree / "engine/other.py"
    other.write_text("def broken(:\n")
    judged()
    report, anew = judged("engine/other.py")
    assert not anew
    assert [problem.message for problem in report.problems] == ["syntax error: invalid syntax"]


def test_concurrent_runs_agree(tree: Path) -> None:
    command = [sys.executable, "-m", "moe_lint", "--cache-dir", str(tree / "cache"), "--format", "json", "engine"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tree) for _ in range(4)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert {process.returncode for process in running} == {1}


def test_another_version_of_the_tool_judges_anew(tree: Path) -> None:
    tool = tree / "tool"
    shutil.copytree(Path(engine.__file__).parent, tool / "moe_lint", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "moe_lint", "--cache-dir", str(tree / "cache"), "--format", "json", "engine"]

    def judgements() -> int:
        env = os.environ | {"PYTHONPATH": str(tool), "PYTHONDONTWRITEBYTECODE": "1"}
        assert subprocess.run(command, cwd=tree, env=env, capture_output=True, check=False).returncode == 1
        return len(list((tree / "cache").glob("*.judgement")))

    assert (judgements(), judgements()) == (1, 1)
    module = tool / "moe_lint/rules/moe101_axis_drift.py"
    module.write_text(f"{module.read_text()}# another version\n")
    assert (judgements(), judgements()) == (2, 2)


def test_no_cache_keeps_nothing_and_clean_empties(tree: Path) -> None:
    folder = str(tree / "cache")
    assert findings("--no-cache", "--cache-dir", folder, "engine") == EXPECTED
    assert not Path(folder).exists()
    assert findings("--cache-dir", folder, "engine") == EXPECTED
    assert moe_lint("clean", "--cache-dir", folder).stdout == f"1 judgement removed from {folder}\n"
    assert list(Path(folder).glob("*.judgement")) == []


def test_without_an_option_the_cache_is_where_the_platform_keeps_caches(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOE_LINT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "caches"))
    monkeypatch.setenv("HOME", str(tree))
    assert findings("engine") == EXPECTED
    (entry,) = tree.rglob("*.judgement")
    assert "cache" in str(entry.relative_to(tree)).lower()
    # nobody asked for one there: a folder that cannot be written is no reason not to judge
    monkeypatch.setattr(Path, "mkdir", refuse)
    shutil.rmtree(entry.parent)
    result = moe_lint("engine")
    assert (result.exit_code, result.stderr) == (1, "")


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_cache_folder_that_cannot_be_made_is_one_clear_line(tree: Path) -> None:
    (tree / "file").write_text("")
    result = moe_lint("--cache-dir", str(tree / "file" / "cache"), "engine")
    assert result.exit_code == 2
    assert result.stderr == f"moe-lint: error: {tree}/file/cache: the cache cannot be written: Not a directory\n"


def test_a_cache_folder_that_cannot_be_read_is_not_called_empty(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    result = moe_lint("clean", "--cache-dir", str(tree))
    assert (result.exit_code, result.stderr) == (2, f"moe-lint: error: {tree}: cannot be emptied: Permission denied\n")


def test_an_entry_that_another_run_takes_away_meanwhile_does_not_disturb(tree: Path) -> None:
    (tree / "cache").mkdir()
    (tree / "cache/gone.judgement").symlink_to("nowhere")
    assert findings("--cache-dir", str(tree / "cache"), "engine") == EXPECTED


def test_a_file_that_is_as_it_was_is_read_only_if_its_text_is_needed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_CLOCK", -(10**12))  # stamps are believed at once
    options = Options(("engine",), PROFILE, cache=Cache(tree / "cache"))
    run(options)
    changed = tree / "engine/models/unguarded.py"
    changed.write_text(f"{changed.read_text()}# changed\n")
    names: list[str] = []
    original = reading.read_bytes

    def noted(path: str) -> bytes:
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(reading, "read_bytes", noted)
    run(options)
    assert "unguarded.py" in names
    assert "right.py" not in names
