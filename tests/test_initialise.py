"""The helper that `init` gives a tree: what its guards name, and on which axis."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moe_lint.initialise import InitPlan, helper_source, plan_init
from moe_lint.profile import load_profile
from moe_lint.rules._cases import UTILS, experts, model
from tests.runs import moe_lint
from tests.trees import COMPLETE, write_tree

PAIR = """
if self.ep_size > 1 and not should_allreduce_fusion:
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1 and not should_allreduce_fusion and not should_use_flashinfer_cutlass_moe_fp4_allgather():
    x = moe_tensor_model_parallel_all_reduce(x)
"""
COMBINE = """\
from engine.distributed import get_tp_group
from engine.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather


class Dispatcher:
    def combine(self, x):
        if should_use_flashinfer_cutlass_moe_fp4_allgather():
            get_tp_group().reduce_scatterv(x)
        return x
"""


WITHOUT_HELPER = UTILS[: UTILS.index("def should_skip_post_experts_all_reduce")]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a tree in it, `engine/`, that has skip predicates and no helper."""
    for name, text in {"layers/moe/utils.py": WITHOUT_HELPER, "models/pretend.py": str(model(experts(PAIR)))}.items():
        path = tmp_path / "engine" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("dispatcher", "condition"),
    [
        ("", "is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()"),
        (COMBINE, "should_use_flashinfer_cutlass_moe_fp4_allgather()"),
        (COMBINE.replace("combine", "dispatch"), "is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()"),
    ],
    ids=["named-on-one-axis", "summed-in-the-combine", "summed-elsewhere"],
)
def test_a_reason_of_one_axis_counts_for_both_where_the_combine_sums(
    tmp_path: Path, dispatcher: str, condition: str
) -> None:
    files = {
        "layers/moe/utils.py": WITHOUT_HELPER,
        "layers/moe/dispatcher.py": dispatcher,
        "models/pretend.py": str(model(experts(PAIR))),
    }
    for name, text in files.items():
        path = tmp_path / "engine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    profile = load_profile("sglang")
    plan = plan_init(str(tmp_path / "engine"), profile)
    assert plan is not None
    lines = [line.strip() for line in helper_source(plan.helper, profile).splitlines()]
    assert f"if {condition}:" in lines


def test_the_diff_names_files_from_the_working_directory(bare: Path) -> None:
    diff = moe_lint("init", "--diff", "engine").stdout
    assert diff.startswith("--- a/engine/layers/moe/utils.py\n+++ b/engine/layers/moe/utils.py\n")


def test_the_helper_stands_behind_the_predicates_in_a_file_with_form_feeds(bare: Path) -> None:
    utils = bare / "engine/layers/moe/utils.py"
    assert moe_lint("init", "engine").exit_code == 0
    written = utils.read_text()
    utils.write_text(WITHOUT_HELPER.replace("\n\ndef ", "\n\x0c\ndef "))
    assert moe_lint("init", "engine").exit_code == 0
    assert "\x0c" in utils.read_text()
    assert utils.read_text().replace("\x0c", "") == written


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("engine/own.py", b"def (:\n", "engine/own.py:1: syntax error: invalid syntax"),
        (
            "engine/own.py",
            b"# \xff\n",
            "engine/own.py:1: not readable as text: invalid or missing encoding declaration",
        ),
        ("engine/layers/moe/__init__.py", b"def (:\n", "engine/layers/moe/__init__.py:1: syntax error: invalid syntax"),
    ],
    ids=["home-is-broken", "home-is-no-text", "package-is-broken"],
)
def test_a_file_that_cannot_be_read_ends_it_in_one_line(bare: Path, name: str, content: bytes, told: str) -> None:
    (bare / name).write_bytes(content)
    result = moe_lint("init", "engine", *(["--into", name] if name == "engine/own.py" else []))
    assert (result.exit_code, result.stderr) == (2, f"moe-lint: error: {told}\n")
    assert (bare / "engine/layers/moe/utils.py").read_text() == WITHOUT_HELPER


@pytest.mark.parametrize(("into", "shown"), [("nowhere.py", "nowhere.py"), ("engine", "engine"), ("", "''")])
def test_a_home_that_is_no_file_is_refused(bare: Path, into: str, shown: str) -> None:
    result = moe_lint("init", "--into", into, "engine")
    assert (result.exit_code, result.stderr) == (2, f"moe-lint: error: --into: {shown}: no such file\n")


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("from .utils import scale\n", "from .utils import scale, {0}\n"),
        (
            "from .other_utils import a\nfrom .utils import b\n",
            "from .other_utils import a\nfrom .utils import b, {0}\n",
        ),
        ("from .utils import *\n", "from .utils import *\n"),
        ("from .utils import *\n\n__all__ = ['a']\n", "from .utils import *\n\n__all__ = ['a', \"{0}\"]\n"),
        ("import os\n", "import os\n"),
    ],
    ids=["by-name", "beside-a-longer-name", "everything", "everything-that-is-listed", "nothing"],
)
def test_the_package_exports_the_helper_as_it_exports_the_predicates(bare: Path, package: str, expected: str) -> None:
    init = bare / "engine/layers/moe/__init__.py"
    init.write_text(package)
    assert moe_lint("init", "engine").exit_code == 0
    assert init.read_text() == expected.format("should_skip_post_experts_all_reduce")


def test_a_home_that_lists_its_public_names_lists_the_helper_too(bare: Path) -> None:
    utils = bare / "engine/layers/moe/utils.py"
    utils.write_text(f'__all__ = ["scale"]\n{WITHOUT_HELPER}')
    assert moe_lint("init", "engine").exit_code == 0
    assert utils.read_text().startswith('__all__ = ["scale", "should_skip_post_experts_all_reduce"]\n')


def test_a_predicate_of_another_module_is_imported_where_the_helper_asks_it(tmp_path: Path) -> None:
    """In the function: at the top of the module it could be a circle, as here."""
    root = write_tree(tmp_path, COMPLETE, helper=False)
    utils, package, user = root / "layers/moe/utils.py", root / "layers/moe/__init__.py", root / "models/x.py"
    before, _, predicate = utils.read_text().partition("def should_use_dp_reduce_scatterv")
    utils.write_text(before)
    elsewhere = (
        "from .moe.utils import get_moe_a2a_backend\n\n_DP_SCATTER = True\n\n\ndef should_use_dp_reduce_scatterv"
    )
    (root / "layers/dp.py").write_text(elsewhere + predicate)
    package.write_text(package.read_text().replace("    should_use_dp_reduce_scatterv,\n", ""))
    own = user.read_text().replace("    should_use_dp_reduce_scatterv,\n", "")
    imports = "from engine.layers.dp import should_use_dp_reduce_scatterv\nfrom engine.layers.moe "
    user.write_text(own.replace("from engine.layers.moe ", imports))
    assert moe_lint("init", str(root)).exit_code == 0
    assert moe_lint("--fix", str(root)).exit_code == 0
    code = "from engine.layers.moe.utils import *; print(should_skip_post_experts_all_reduce(is_tp_path=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_a_predicate_that_no_file_defines_is_named(bare: Path) -> None:
    utils = bare / "engine/layers/moe/utils.py"
    gone = "should_use_flashinfer_cutlass_moe_fp4_allgather"
    utils.write_text(WITHOUT_HELPER.replace(f"def {gone}", "def other"))
    result = moe_lint("init", "--into", "engine/layers/moe/utils.py", "engine")
    assert result.stderr == (
        f"moe-lint: error: engine/layers/moe/utils.py: does not know `{gone}`, which the helper asks; "
        "name a module that does: --into\n"
    )


def test_a_home_outside_of_the_tree_is_refused(bare: Path) -> None:
    (bare / "own.py").write_text("")
    result = moe_lint("init", "--into", "own.py", "engine")
    assert (result.exit_code, result.stderr) == (2, "moe-lint: error: --into: own.py: no Python file of engine\n")
    assert (bare / "own.py").read_text() == ""


def test_the_helper_is_added_by_a_libcst_command_file_by_file(bare: Path) -> None:
    package = bare / "engine/layers/moe/__init__.py"
    package.write_text("from engine.layers.moe.utils import get_moe_a2a_backend\n")
    expected = {Path(one.path).name: one.after for one in _planned("engine").files}
    command = [
        sys.executable,
        "-m",
        "libcst.tool",
        "codemod",
        "--no-format",
        "-j1",
        "-x",
        "codemods.commands.AddHelper",
    ]
    files = ["engine/layers/moe/utils.py", "engine/layers/moe/__init__.py", "engine/models/pretend.py"]
    subprocess.run([*command, "--tree", "engine", *files], check=True, capture_output=True, cwd=bare)
    assert {name: (bare / "engine/layers/moe" / name).read_text() for name in expected} == expected
    assert sorted(expected) == ["__init__.py", "utils.py"]


def _planned(tree: str) -> InitPlan:
    plan = plan_init(tree, load_profile("sglang"))
    assert plan is not None
    return plan
