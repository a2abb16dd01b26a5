"""What forks do to the names and places of an engine: the same findings, and fixes that fit the fork."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.runs import document, moe_lint
from tests.trees import COMPLETE, FORGETFUL, HELPER_NAME, ROUTED, model, write_tree

ANNOTATED = FORGETFUL.replace("    x = ", "    x: Tensor = ")
BARE = "x = tensor_model_parallel_all_reduce(x)\n"


def rewrite(tree: Path, *pairs: tuple[str, str]) -> None:
    """Replace patterns in every file of a tree."""
    for path in tree.rglob("*.py"):
        text = path.read_text()
        for pattern, by in pairs:
            text = re.sub(pattern, by, text)
        path.write_text(text)


def renamed(tree: Path, names: Mapping[str, str]) -> None:
    rewrite(tree, *((rf"(?<!\w){old}(?!\w)", new) for old, new in names.items()))


def fixed(tree: Path, *options: str) -> str:
    """The model file after `--fix`, which must leave nothing behind."""
    result = moe_lint("--fix", "--no-cache", *options, str(tree))
    assert result.exit_code == 0, result.output
    return (tree / "models" / "x.py").read_text()


# --- relative imports


def relatively(tree: Path) -> None:
    """Every import of the tree's own modules, relative."""
    for path in tree.rglob("*.py"):
        dots = "." * len(path.relative_to(tree).parts)
        text = re.sub(r"from engine\.([\w.]+) import", rf"from {dots}\1 import", path.read_text())
        path.write_text(text)


def test_a_file_that_imports_relatively_gets_a_relative_import(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    relatively(tree)
    text = fixed(tree)
    assert f"from ..layers.moe import (\n    get_moe_a2a_backend,\n    {HELPER_NAME},\n" in text
    compile(text, "x.py", "exec")


def test_a_relative_import_stands_among_the_relative_ones_in_order(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    path = tree / "models" / "x.py"
    path.write_text(model(BARE, moe=()))
    relatively(tree)
    path.write_text(re.sub(r"(from \.\.layers.*\n)", r"\1from .registry import known\n", path.read_text()))
    lines = [line for line in fixed(tree).splitlines() if line.startswith("from .")]
    assert lines[-3:] == [
        "from ..layers.communicator import LayerCommunicator",
        f"from ..layers.moe import {HELPER_NAME}",
        "from .registry import known",
    ]


def test_a_module_that_no_relative_import_can_reach_is_said(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    relatively(tree)
    (tree / "__init__.py").unlink()
    path = tree / "models" / "x.py"
    # the file reaches the tree in another way: its one relative import stays in its own folder
    path.write_text(re.sub(r"from \.\.(\S+) import", r"from .kit import", path.read_text()))
    (tree / "models" / "kit.py").write_text(
        "from ..distributed import *\nfrom ..layers.communicator import *\nfrom ..layers.moe import *\n"
    )
    output = moe_lint("--no-cache", str(tree)).output
    assert f"no fix: `{HELPER_NAME}` cannot be reached from here" in output


# --- a helper that is asked of an object


def as_method(tree: Path, decorator: str, itself: str) -> None:
    """The helper as a method of a class of its module; ``itself`` is its first parameter, if it has one."""
    path = tree / "layers" / "moe" / "utils.py"
    head, body = path.read_text().split(f"def {HELPER_NAME}(\n    *,")
    body = body.replace("\n", "\n    ").rstrip(" ")
    method = f"    {decorator}def {HELPER_NAME}(\n        {itself}*,{body}"
    getter = "\n\n_RANKS = Ranks()\n\n\ndef get_ranks() -> Ranks:\n    return _RANKS\n" if itself else ""
    path.write_text(f"{head}class Ranks:\n{method}{getter}")


@pytest.mark.parametrize(
    ("decorator", "itself", "asked"),
    [("@staticmethod\n    ", "", "Ranks"), ("", "self, ", "get_ranks()")],
    ids=["static-method", "method-of-what-a-function-returns"],
)
def test_a_helper_that_is_a_method_is_asked_as_the_tree_asks_it(
    tmp_path: Path, decorator: str, itself: str, asked: str
) -> None:
    tree = write_tree(tmp_path)
    as_method(tree, decorator, itself)
    imported = asked.removesuffix("()")
    (tree / "models" / "other.py").write_text(model(ROUTED, moe=(HELPER_NAME,)))
    for path in (tree / "models" / "other.py", tree / "layers" / "moe" / "__init__.py"):
        text = re.sub(rf"(?<!\w){HELPER_NAME}\(", f"{asked}.{HELPER_NAME}(", path.read_text())
        path.write_text(re.sub(rf"(?<![\w.]){HELPER_NAME}(?!\()", imported, text))
    found = document("json", "--no-cache", str(tree))["findings"]
    assert [(f["rule"], f["fix"]["safety"]) for f in found] == [("MOE001", "corrective")]
    text = fixed(tree)
    assert f"if self.tp_size > 1 and not {asked}.{HELPER_NAME}(\n            is_tp_path=True,\n" in text
    assert re.search(rf"from engine\.layers\.moe import \(?\s*[^)]*\b{imported}\b", text)


def test_a_fix_of_the_arguments_leaves_whom_is_asked(tmp_path: Path) -> None:
    wrong = ROUTED.replace("=True", "=False").replace(f"not {HELPER_NAME}(", f"not get_ranks().{HELPER_NAME}(")
    tree = write_tree(tmp_path, wrong)
    as_method(tree, "", "self, ")
    rewrite(tree, (r"(?<!\w)get_moe_a2a_backend,", "get_moe_a2a_backend,\n    get_ranks,"))
    rewrite(tree / "layers", (f"    {HELPER_NAME},\n", ""))
    assert f"    if self.tp_size > 1 and not get_ranks().{HELPER_NAME}(\n            is_tp_path=True,\n" in fixed(tree)


def test_what_a_method_asks_of_itself_is_what_a_guard_asks_of_the_getter(tmp_path: Path) -> None:
    asks = (
        "if get_ranks().share_sums:\n    x = x\nelif self.tp_size > 1:\n    x = tensor_model_parallel_all_reduce(x)\n"
    )
    tree = write_tree(tmp_path, asks, flags="")
    path = tree / "layers" / "moe" / "utils.py"
    head = path.read_text().split(f"def {HELPER_NAME}(")[0]
    path.write_text(
        f"{head}class Ranks:\n    def {HELPER_NAME}(self, *, is_tp_path):\n        return self.share_sums\n\n\n"
        "def get_ranks() -> Ranks:\n    return Ranks()\n"
    )
    (tree / "models" / "other.py").write_text(
        model(f"if not get_ranks().{HELPER_NAME}(is_tp_path=True):\n    {BARE}", moe=("get_ranks",), flags="")
    )
    (tree / "layers" / "moe" / "__init__.py").write_text("from engine.layers.moe.utils import get_ranks\n")
    rewrite(tree / "models", ("get_moe_a2a_backend", "get_ranks"))
    found = document("json", "--no-cache", str(tree))["findings"]
    assert [(f["rule"], f["relation"]) for f in found] == [("MOE001", "equal")]


# --- renamed names, and the names of the base beside them

RENAMED = {
    "should_allreduce_fusion": "fuse_later",
    "should_fuse_mlp_allreduce_with_next_layer": "may_fuse_later",
    "use_reduce_scatter": "scatter_later",
    "tensor_model_parallel_all_reduce": "sum_ranks",
}
PROFILE = """\
extends = "sglang"
[collectives]
sum_ranks = "TP"
[[flags]]
name = "fuse_later"
predicate = "may_fuse_later"
[[flags]]
name = "scatter_later"
predicate = "should_use_reduce_scatter"
[[launch.switches]]
name = "fusion"
atoms = ["fuse_later"]
"""


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "fork.toml"
    path.write_text(PROFILE)
    return str(path)


def test_init_gives_a_fork_its_own_flags_and_no_others(tmp_path: Path, profile: str) -> None:
    tree = write_tree(tmp_path, COMPLETE, helper=False)
    renamed(tree, RENAMED)
    (tree / "models" / "notes.py").write_text(
        "# expert sums: `use_reduce_scatter` was its name, tensor_model_parallel_all_reduce\n"
    )
    result = moe_lint("init", "--profile", profile, str(tree))
    text = (tree / "layers" / "moe" / "utils.py").read_text()
    assert "    is_tp_path: bool,\n    scatter_later: bool = False,\n    fuse_later: bool = False,\n)" in text
    assert "use_reduce_scatter" not in text
    assert result.output.splitlines()[-1].endswith(f"next: moe-lint --fix --profile {profile} {tree}")
    assert fixed(tree, "--profile", profile).count("scatter_later=scatter_later") == 1


def test_reasons_of_a_fork_are_told_once_and_with_the_option_of_the_base(tmp_path: Path, profile: str) -> None:
    tree = write_tree(tmp_path, BARE)
    renamed(tree, RENAMED)
    (finding,) = document("json", "--no-cache", "--profile", profile, str(tree))["findings"]
    assert finding["rule"] == "MOE002"
    assert "`fuse_later=True` (for example `--tp 2 --enable-flashinfer-allreduce-fusion`)" in finding["witness"]


# --- annotated otherwise


def test_an_annotated_reduction_is_fixed_like_another(tmp_path: Path) -> None:
    text = fixed(write_tree(tmp_path, ANNOTATED))
    assert f"not {HELPER_NAME}(" in text
    assert "            x: Tensor = tensor_model_parallel_all_reduce(x)\n" in text


def test_an_annotated_reduction_without_a_guard_gets_one(tmp_path: Path) -> None:
    text = fixed(write_tree(tmp_path, "y: Tensor = tensor_model_parallel_all_reduce(x)\nx = y\n"))
    assert "        y = x\n        if not " in text
    assert "            y: Tensor = tensor_model_parallel_all_reduce(x)\n" in text


# --- renamed predicates


def test_a_combine_is_compared_by_whatever_the_helper_asks(tmp_path: Path) -> None:
    ep = ROUTED.replace("tp_size", "ep_size").replace("=True", "=False").replace("tensor_model", "expert")
    tree = write_tree(tmp_path, ep.replace("expert_parallel", "moe_expert_parallel"))
    (tree / "layers" / "dispatcher.py").write_text(
        "from engine.layers.moe import should_use_flashinfer_cutlass_moe_fp4_allgather\n\n\n"
        "class Dispatcher:\n    def combine(self, x):\n"
        "        if should_use_flashinfer_cutlass_moe_fp4_allgather():\n"
        "            get_tp_group().reduce_scatterv(x)\n        return x\n"
    )
    before = document("json", "--no-cache", str(tree))["findings"]
    renamed(tree, {"should_use_flashinfer_cutlass_moe_fp4_allgather": "kernel_gathers"})
    after = document("json", "--no-cache", str(tree))["findings"]
    assert [f["rule"] for f in before] == [f["rule"] for f in after] == ["MOE403"]


# --- classes and packages of other names


def test_a_vendored_copy_does_not_answer_for_the_package_beside_it(tmp_path: Path) -> None:
    asks = f"return {HELPER_NAME}(is_tp_path=True, use_reduce_scatter=a, should_allreduce_fusion=b)"
    for folder, body in (("3rdparty", "return a"), ("python", asks)):
        guard = ROUTED.split("not ")[0] + f"not skip(use_reduce_scatter, should_allreduce_fusion):\n    {BARE}"
        tree = write_tree(tmp_path / folder, guard, helper=folder == "python")
        (tree / "layers" / "skips.py").write_text(
            f"from engine.layers.moe import {HELPER_NAME}\n\n\ndef skip(a, b):\n    {body}\n"
        )
        path = tree / "models" / "x.py"
        path.write_text(f"from engine.layers.skips import skip\n{path.read_text()}")
    found = document("json", "--no-cache", str(tmp_path))["findings"]
    assert [Path(f["path"]).relative_to(tmp_path).parts[0] for f in found] == ["3rdparty"]


def test_a_class_derived_from_an_absorber_absorbs_under_any_name(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, BARE)
    (tree / "layers" / "seam.py").write_text(
        "from engine.layers.communicator import LayerCommunicator\n\n\n"
        "class Joint(LayerCommunicator):\n    pass\n\n\nclass Seam(Joint):\n    pass\n"
    )
    path = tree / "models" / "x.py"
    text = path.read_text().replace("communicator import LayerCommunicator", "seam import Seam")
    path.write_text(text.replace("LayerCommunicator()", "Seam()"))
    assert [f["rule"] for f in document("json", "--no-cache", str(tree))["findings"]] == ["MOE002"]


# --- flags that travel in an object


def test_flags_of_an_object_are_passed_on_as_the_guard_asks_for_them(tmp_path: Path) -> None:
    guard = FORGETFUL.replace("use_reduce", "ctx.use_reduce").replace("should_all", "ctx.should_all")
    tree = write_tree(tmp_path, guard, flags="ctx")
    (finding,) = document("json", "--no-cache", str(tree))["findings"]
    assert (finding["rule"], finding["relation"], finding["fix"]["safety"]) == ("MOE001", "weaker", "corrective")
    text = fixed(tree)
    assert "            use_reduce_scatter=ctx.use_reduce_scatter,\n" in text
    assert "            should_allreduce_fusion=ctx.should_allreduce_fusion,\n" in text


# --- the helper's own names


def reworded(tree: Path, *pairs: tuple[str, str]) -> None:
    """Change the text of the helper's file."""
    path = tree / "layers" / "moe" / "utils.py"
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def with_own_flags(tree: Path) -> Path:
    """The helper, and who asks it, with other names for its flags."""
    reworded(tree, ("use_reduce_scatter", "scatter"), ("should_allreduce_fusion", "fuse"))
    asked = (r"use_reduce_scatter=use", "scatter=use"), (r"should_allreduce_fusion=should", "fuse=should")
    rewrite(tree / "models", *asked, (r"engine.layers.moe import \(", rf"\g<0>\n    {HELPER_NAME},"))
    return tree


def test_flags_that_the_helper_alone_calls_otherwise(tmp_path: Path) -> None:
    tree = with_own_flags(write_tree(tmp_path, ROUTED))
    assert document("json", "--no-cache", str(tree))["findings"] == []


def test_a_fix_uses_the_names_of_the_helper(tmp_path: Path) -> None:
    tree = with_own_flags(write_tree(tmp_path, FORGETFUL + ROUTED))
    moe_lint("--fix", "--no-cache", "--select", "MOE001", str(tree))
    assert (tree / "models" / "x.py").read_text().count("scatter=use_reduce_scatter") == 2


@pytest.mark.parametrize(
    "question",
    [
        "get_moe_a2a_backend() in (MoeA2ABackend.ALPHA, MoeA2ABackend.BETA)",
        "get_moe_a2a_backend() is MoeA2ABackend.ALPHA or MoeA2ABackend.BETA == get_moe_a2a_backend()",
    ],
)
def test_backends_that_are_compared_are_those_that_are_asked_for(tmp_path: Path, question: str) -> None:
    asked = "    and not (get_moe_a2a_backend().is_alpha() or get_moe_a2a_backend().is_beta())\n"
    first = "    and not use_reduce_scatter\n"
    tree = write_tree(tmp_path, COMPLETE.replace(first, asked + first))
    reworded(tree, ("    if should_use_dp_r", f"    if {question}:\n        return True\n    if should_use_dp_r"))
    (finding,) = document("json", "--no-cache", str(tree))["findings"]
    assert (finding["rule"], finding["relation"]) == ("MOE001", "equal")


# --- a helper that takes more, or in another order

TAKEN = (
    "    *,\n    is_tp_path: bool,\n    use_reduce_scatter: bool = False,\n    should_allreduce_fusion: bool = False,\n"
)
AXIS, REST = "    is_tp_path: bool,\n", TAKEN.partition("bool,\n")[2]
#: how the helper is asked by position, beside its parameters
BY_POSITION = {
    "axis-first": (AXIS + REST, "True, use_reduce_scatter, should_allreduce_fusion"),
    "another-parameter-first": (f"    layer,\n{AXIS}{REST}", "self, True, use_reduce_scatter, should_allreduce_fusion"),
    "axis-last": (
        REST.replace(": bool = False", "") + AXIS,
        "use_reduce_scatter, should_allreduce_fusion, True",
    ),
    "the-rest-by-keyword": (
        f"    layer,\n{TAKEN}",
        "self, is_tp_path=True, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion",
    ),
}


def asking(root: Path, taken: str, asked: str) -> Path:
    """A tree whose helper takes these parameters, with a block that asks it so."""
    tree = write_tree(root)
    reworded(tree, (TAKEN, taken))
    guard = f"if self.tp_size > 1 and not {HELPER_NAME}({asked}):\n    {BARE}"
    (tree / "models" / "x.py").write_text(model(guard, moe=(HELPER_NAME,)))
    return tree


def rules_of(tree: Path) -> list[str]:
    return [f["rule"] for f in document("json", "--no-cache", str(tree))["findings"]]


@pytest.mark.parametrize(("taken", "asked"), BY_POSITION.values(), ids=BY_POSITION)
def test_a_helper_is_asked_by_position_as_its_signature_says(tmp_path: Path, taken: str, asked: str) -> None:
    assert rules_of(asking(tmp_path / "right", taken, asked)) == []
    assert rules_of(asking(tmp_path / "axis", taken, asked.replace("True", "False"))) == ["MOE004"]
    literal = re.sub(r"(?<!\w)use_reduce_scatter(?!=)", "False", asked)
    assert rules_of(asking(tmp_path / "literal", taken, literal)) == ["MOE006"]


def test_a_flag_that_is_left_out_by_position_is_forgotten(tmp_path: Path) -> None:
    assert rules_of(asking(tmp_path, AXIS + REST, "True, use_reduce_scatter")) == ["MOE005"]


def test_a_fix_keeps_what_else_the_helper_is_given(tmp_path: Path) -> None:
    asked = BY_POSITION["another-parameter-first"][1].replace("True", "False")
    text = fixed(asking(tmp_path, BY_POSITION["another-parameter-first"][0], asked))
    assert "            is_tp_path=True,\n" in text
    assert "            layer=self,\n" in text


def test_a_fix_gives_the_helper_what_the_method_has_of_that_name(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, FORGETFUL, flags="layer, use_reduce_scatter=False, should_allreduce_fusion=False")
    reworded(tree, (TAKEN, f"    layer,\n{TAKEN}"))
    assert "            layer=layer,\n" in fixed(tree)


def test_no_fix_asks_a_helper_that_needs_what_is_not_known(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, FORGETFUL)
    reworded(tree, (TAKEN, f"    layer,\n{TAKEN}"))
    output = moe_lint("--fix", "--no-cache", str(tree)).output
    assert f"no fix: `{HELPER_NAME}` needs `layer`, and what that is here is not known" in output
    assert "layer=…)`" in output
