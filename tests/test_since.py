"""`--since REV`: the whole tree judges, and only what the change touches is reported."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import moe_lint as api
from moe_lint.changes import parse_diff
from tests.runs import moe_lint
from tests.trees import COMPLETE, FORGETFUL, ROUTED, model, write_tree

UTILS = "engine/layers/moe/utils.py"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "a change", "--allow-empty")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, whose models x and y forget reasons; the working directory."""
    write_tree(tmp_path, FORGETFUL)
    (tmp_path / "engine/models/y.py").write_text(model(FORGETFUL).replace("XSparse", "YSparse").replace("XDec", "YDec"))
    (tmp_path / "engine/models/right.py").write_text(model(ROUTED))
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reported(*args: str) -> list[str]:
    document = json.loads(moe_lint("--format", "json", "--since", *(args or ("HEAD",)), "engine").stdout)
    return [Path(finding["path"]).stem for finding in document["findings"]]


def edit(tree: Path, name: str, old: str, new: str) -> None:
    path = tree / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_without_a_change_nothing_is_reported(tree: Path) -> None:
    assert moe_lint("engine").exit_code == 1
    assert (reported(), moe_lint("--since", "HEAD", "engine").exit_code) == ([], 0)


@pytest.mark.parametrize(
    ("name", "old", "new", "touched"),
    [
        # the site's own guard, and another line of its class
        ("engine/models/x.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and", ["x"]),
        ("engine/models/x.py", "        self.ep_size = config.ep_size\n", "", ["x"]),
        # an import of its file; a comment or a blank line outside is nothing
        ("engine/models/x.py", "    get_tp_world_size,\n", "", ["x"]),
        ("engine/models/x.py", "from __future__", "# a comment\n\nfrom __future__", []),
        # the layer around the block
        ("engine/models/y.py", "LayerCommunicator()", "LayerCommunicator(batch=None)", ["y"]),
        # a right model that stays right
        ("engine/models/right.py", "self.tp_size > 1", "self.tp_size >= 2", []),
        # the helper, a predicate that it calls, and one that this calls, touch all users
        (
            UTILS,
            "    if use_reduce_scatter or should_allreduce_fusion:",
            "    if should_allreduce_fusion or use_reduce_scatter:",
            ["x", "y"],
        ),
        (UTILS, "return _DP_SCATTER and", "return bool(_DP_SCATTER) and", ["x", "y"]),
        (UTILS, "    return _BACKEND\n", "    return _BACKEND or _BACKEND\n", ["x", "y"]),
        # something else in the helper's file
        (UTILS, "def get_moe_a2a_backend", "def other():\n    return 1\n\n\ndef get_moe_a2a_backend", []),
        # another file that nothing rests on
        ("engine/distributed.py", "return 2", "return 3", []),
    ],
)
def test_what_a_change_touches_is_reported(tree: Path, name: str, old: str, new: str, touched: list[str]) -> None:
    edit(tree, name, old, new)
    assert reported() == touched
    commit(tree)
    assert (reported("HEAD"), reported("HEAD~1"), reported("HEAD^")) == ([], touched, touched)


def test_a_base_class_touches_what_derives_from_it(tree: Path) -> None:
    base = "class Base:\n    def old(self):\n        return 1\n\n\n"
    edit(tree, "engine/models/x.py", "class XSparseMoeBlock:", "class XSparseMoeBlock(Base):")
    edit(tree, "engine/models/x.py", "from engine.layers.comm", "from engine.base import Base\nfrom engine.layers.comm")
    (tree / "engine/base.py").write_text(base)
    commit(tree)
    edit(tree, "engine/base.py", "return 1", "return 2")
    assert reported() == ["x"]


def test_a_predicate_in_the_guard_touches_its_users(tree: Path) -> None:
    edit(tree, "engine/models/y.py", "not use_reduce_scatter", "not use_reduce_scatter and not should_use_own_path()")
    edit(
        tree,
        "engine/models/y.py",
        "from engine.layers.moe import",
        "from engine.own import should_use_own_path\nfrom engine.layers.moe import",
    )
    (tree / "engine/own.py").write_text(
        "def should_use_own_path():\n    return inner()\n\n\ndef inner():\n    return False\n"
    )
    commit(tree)
    edit(tree, "engine/own.py", "return False", "return True")
    assert reported() == ["y"]


def test_a_helper_that_is_taken_away_touches_all(tree: Path) -> None:
    utils = tree / UTILS
    text = utils.read_text()
    utils.write_text(text[: text.index("def should_skip_post_experts")])
    assert {"x", "y"} <= set(reported())


def test_new_files_count_committed_staged_or_untracked(tree: Path) -> None:
    (tree / "engine/models/new.py").write_text(model(COMPLETE))
    assert reported() == ["new"]
    git(tree, "add", "-A")
    assert reported() == ["new"]
    commit(tree)
    assert (reported("HEAD"), reported("HEAD~1")) == ([], ["new"])


def test_a_file_that_got_another_name_is_new(tree: Path) -> None:
    git(tree, "mv", "engine/models/x.py", "engine/models/renamed.py")
    assert reported() == ["renamed"]
    commit(tree)
    assert (reported("HEAD"), reported("HEAD~1")) == ([], ["renamed"])


def test_in_a_shallow_clone_the_revisions_that_it_has_can_be_asked_for(tree: Path, tmp_path: Path) -> None:
    git(tree, "checkout", "-q", "-b", "mine")
    edit(tree, "engine/models/y.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and")
    commit(tree)
    clone = tmp_path / "clone"
    git(tree, "clone", "-q", "--depth", "1", "--branch", "mine", f"file://{tree}", str(clone))
    result = moe_lint("--since", "HEAD~1", str(clone / "engine"))
    assert (result.exit_code, result.stderr) == (
        2,
        f"moe-lint: error: --since: there is no revision 'HEAD~1' in {clone}; it is a shallow clone: fetch more\n",
    )
    # the branch's commit and that of main, without the history between them
    git(clone, "fetch", "-q", "--depth", "1", "origin", "main")
    document = json.loads(moe_lint("--format", "json", "--since", "FETCH_HEAD", str(clone / "engine")).stdout)
    assert [Path(finding["path"]).stem for finding in document["findings"]] == ["y"]


def test_a_branch_is_compared_with_the_point_where_it_left(tree: Path) -> None:
    git(tree, "checkout", "-q", "-b", "mine")
    edit(tree, "engine/models/y.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and")
    commit(tree)
    git(tree, "checkout", "-q", "main")
    edit(tree, "engine/models/x.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and")
    commit(tree)
    git(tree, "checkout", "-q", "mine")
    assert reported("main") == ["y"]


def test_a_changed_configuration_touches_all(tree: Path) -> None:
    (tree / "moe-lint.toml").write_text('ignore = ["MOE102"]\n')
    assert reported() == ["x", "y"]


def test_odd_file_names_are_found(tree: Path) -> None:
    names = ["ein ü.py", 'quo"te.py', "tab\there.py", 'ä"é\n.py']
    for name in names:
        (tree / "engine/models" / name).write_text(model(ROUTED))
    commit(tree)
    for name in names:
        (tree / "engine/models" / name).write_text(model(FORGETFUL))
    assert sorted(reported()) == sorted(Path(name).stem for name in names)


def test_in_a_hook_of_a_linked_work_tree_a_folder_is_not_taken_for_its_top(
    tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = tmp_path_factory.mktemp("linked") / "tree"
    git(tree, "worktree", "add", "-q", "--detach", str(linked))
    monkeypatch.chdir(linked)
    monkeypatch.setenv("GIT_DIR", git(linked, "rev-parse", "--absolute-git-dir").strip())
    assert reported() == []
    edit(linked, "engine/models/x.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and")
    assert reported() == ["x"]


def test_a_submodule_has_revisions_of_its_own(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outer = tmp_path_factory.mktemp("outer")
    git(outer, "init", "-q")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(tree), "inner")
    git(outer, "commit", "-q", "-m", "a submodule")
    edit(outer, "inner/engine/models/x.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and")
    told = moe_lint("--format", "concise", "--since", "HEAD", str(outer / "inner")).stdout
    assert ("models/x.py:25" in told, "models/y.py" in told) == (True, False)


def test_the_baseline_and_the_change_both_hold(tree: Path) -> None:
    moe_lint("--baseline", "known.json", "--write-baseline", "engine")
    edit(tree, "engine/models/x.py", "        self.ep_size = config.ep_size\n", "")
    document = json.loads(moe_lint("--format", "json", "--since", "HEAD", "--baseline", "known.json", "engine").stdout)
    assert (document["findings"], document["baseline"]["stale"]) == ([], [])


def test_fixing_leaves_what_the_change_does_not_touch(tree: Path) -> None:
    edit(tree, "engine/models/x.py", "if self.tp_size > 1 and", "if self.tp_size >= 2 and")
    before = (tree / "engine/models/y.py").read_text()
    assert moe_lint("--fix", "--since", "HEAD", "engine").exit_code == 0
    assert "should_skip_post_experts_all_reduce(" in (tree / "engine/models/x.py").read_text()
    assert (tree / "engine/models/y.py").read_text() == before


@pytest.mark.parametrize("option", ["--fix", "--add-ignores"])
def test_rewriting_lines_above_leaves_what_the_change_does_not_touch(tree: Path, option: str) -> None:
    path = tree / "engine/models/x.py"
    block = model(FORGETFUL).partition("class XSparseMoeBlock")[2].partition("class XDecoderLayer")[0]
    untouched = f"class ZSparseMoeBlock{block}"
    path.write_text(f"{path.read_text()}\n\n{untouched}")
    commit(tree)
    edit(
        tree,
        "engine/models/x.py",
        "        self.ep_size = config.ep_size\n",
        "        self.ep_size = config.ep_size + 0\n",
    )
    result = moe_lint(option, "--since", "HEAD", "engine")
    assert (result.exit_code, result.stderr) == (0, "")
    assert path.read_text().endswith(untouched)
    assert "moe-lint" in path.read_text() or "should_skip_post_experts_all_reduce(" in path.read_text()


def test_a_single_file_and_the_python_interface_take_it_too(tree: Path) -> None:
    edit(tree, UTILS, "    if use_reduce_scatter or", "    if bool(use_reduce_scatter) or")
    assert [Path(f.path).stem for f in api.check("engine/models/x.py", since="HEAD").findings] == ["x"]


@pytest.mark.parametrize("revision", ["nope", "HEAD~9", "", "-x", "--all", "HEAD:engine"])
def test_a_revision_that_does_not_exist_is_one_line_and_exit_two(tree: Path, revision: str) -> None:
    result = moe_lint(f"--since={revision}", "engine")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert f"--since: there is no revision {revision!r}" in result.stderr


def test_outside_a_work_tree_or_without_git_it_is_one_line_and_exit_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, FORGETFUL)
    monkeypatch.chdir(tmp_path)
    result = moe_lint("--since", "HEAD", "engine")
    assert (result.exit_code, "--since: engine is in no git work tree" in result.stderr) == (2, True)
    monkeypatch.setenv("LANGUAGE", "de")
    assert moe_lint("--since", "HEAD", "engine").stderr.endswith("engine is in no git work tree\n")
    assert "nowhere: no such file or directory" in moe_lint("--since", "HEAD", "nowhere/nowhere").stderr.replace(
        "/nowhere:", ":"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    result = moe_lint("--since", "HEAD", "engine")
    assert (result.exit_code, "--since: git cannot be run" in result.stderr) == (2, True)


def test_a_repository_that_git_does_not_trust_is_told_as_git_tells_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    result = moe_lint("--since", "HEAD", "engine")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "engine is in no git work tree: detected dubious ownership" in result.stderr


def test_hunks_are_read_by_their_counts() -> None:
    diff = "\n".join(
        [
            "--- a/a.py",
            "+++ b/a.py",
            "@@ -1,2 +1 @@",
            "--- not a header",
            "-def gone():",
            "+++ not one either",
            "@@ -9 +8,0 @@",
            "-x",
            "@@ -20,0 +20,3 @@",
            "+1",
            "+2",
            "+def moved():",
            "--- a/b.py",
            "+++ /dev/null",
            "@@ -1,2 +0,0 @@",
            "-def moved():",
            "-class Old:",
        ]
    )
    assert parse_diff(diff) == ({"a.py": ((1, 1), (8, 9), (20, 22))}, frozenset({"gone", "Old"}))


def test_a_repository_that_git_cannot_read_is_one_line(tree: Path) -> None:
    (tree / ".git/index").write_bytes(b"damaged")
    result = moe_lint("--since", "HEAD", "engine")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"moe-lint: error: --since: git cannot tell what has changed in {tree}: fatal: ")
    assert len(result.stderr.splitlines()) == 1
