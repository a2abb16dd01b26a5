"""`--fix --verify`: what is rewritten is run, and a file whose rewrite breaks a case stays as it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from click.testing import Result

from tests.runs import moe_lint
from tests.runtime.mini import PAIR, changed, engine

#: A guard by hand that knows one reason of three.
BY_HAND = changed(
    """        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(
            is_tp_path=False,
            use_reduce_scatter=use_reduce_scatter,
            should_allreduce_fusion=should_allreduce_fusion,
        ):
""",
    "        if self.ep_size > 1 and not should_allreduce_fusion:\n",
)
#: The same in a block that uses a part of the engine that has no implementation here.
UNMODELLED = BY_HAND.replace("from torch import nn\n", "from torch import nn\nimport fancy_kernels\n").replace(
    "        router_logits, _ =",
    "        hidden_states = fancy_kernels.twice(hidden_states)\n        router_logits, _ =",
)
FP4 = "    return should_use_flashinfer_cutlass_moe_fp4_allgather()\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return engine(tmp_path / "tree", {"pair": BY_HAND, "other": PAIR})


def let_the_helper_skip_too_much(tree: Path) -> None:
    """Under DP attention, also where nobody sums: what the linter compares with is wrong itself."""
    utils = tree / "mini/layers/moe/utils.py"
    assert FP4 in utils.read_text()
    utils.write_text(utils.read_text().replace(FP4, "    return is_dp_attention_enabled()\n"))


def check(*arguments: str) -> Result:
    return moe_lint("--no-cache", "--verify", *arguments)


def texts(tree: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in (tree / "mini/models").glob("*.py")}


def test_a_rewrite_that_corrects_is_kept_and_its_verdicts_are_told(tree: Path) -> None:
    result = check("--fix", "tree")
    assert (result.exit_code, texts(tree)["pair"]) == (0, PAIR)
    assert result.stderr == "verified: mini/models/pair.py: pair.PairMoE: 49 EQUIVALENT, 14 CORRECTED, 2 INFEASIBLE\n"


def test_a_rewrite_that_breaks_a_case_is_not_written_and_the_case_is_named(tree: Path) -> None:
    let_the_helper_skip_too_much(tree)
    before = texts(tree)
    result = check("--fix", "tree")
    assert result.exit_code == 1  # the finding is left
    assert texts(tree) == before
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "tree/mini/models/pair.py:37: FIX_NOT_PROVEN: pair.PairMoE block tp2 ep2 dp2 max-len: BROKEN: relative error "
    )
    assert line.endswith("; left as it was")
    assert "fixed tree" not in result.stdout


def test_one_files_rewrite_does_not_fall_with_anothers(tree: Path) -> None:
    # this one takes the double sum into account: right as it is, and wrong with the helper's guard
    divides = BY_HAND.replace(
        "        return hidden_states\n",
        "        return hidden_states / (self.ep_size if use_reduce_scatter else 1)\n",
        1,
    )
    (tree / "mini/models/divides.py").write_text(divides)
    result = check("--fix", "tree")
    assert result.exit_code == 1
    assert texts(tree) == {"pair": PAIR, "other": PAIR, "divides": divides}, result.output
    assert "divides.py:" in result.stderr
    assert "verified: mini/models/pair.py: pair.PairMoE: 49 EQUIVALENT, 14 CORRECTED, 2 INFEASIBLE\n" in result.stderr
    assert "verified: mini/models/divides.py" not in result.stderr


def test_what_cannot_be_run_is_told_and_its_rewrite_is_kept(tree: Path) -> None:
    (tree / "mini/models/pair.py").write_text(UNMODELLED)
    result = check("--fix", "tree")
    assert result.exit_code == 0
    assert texts(tree)["pair"].count("not should_skip") == 2
    assert result.stderr == ("not verified: mini/models/pair.py: pair.PairMoE: 65 UNMODELLED (fancy_kernels.twice)\n")


def test_a_file_without_a_block_that_can_be_run_is_told(tree: Path) -> None:
    text = BY_HAND.replace("self.experts = FusedMoE(", "self.experts = OwnExperts(").replace(
        "from mini.layers.moe.fused_moe_triton.layer import FusedMoE", "from mini.layers.moe.own import OwnExperts"
    )
    (tree / "mini/models/pair.py").write_text(text)
    result = check("--fix", "tree")
    assert result.exit_code == 0
    path = tree / "mini/models/pair.py"
    assert result.stderr == f"not verified: {path}: no MoE block that can be run reaches it\n"
    assert path.read_text().count("not should_skip") == 2


def test_a_single_file_is_verified_in_its_tree(tree: Path) -> None:
    result = check("--fix", "tree/mini/models/pair.py")
    assert (result.exit_code, texts(tree)["pair"]) == (0, PAIR)
    assert "14 CORRECTED" in result.stderr


def test_the_diff_shows_what_would_be_kept_and_writes_nothing(tree: Path) -> None:
    (tree / "mini/models/second.py").write_text(PAIR + "\n# right already\n")
    before = texts(tree)
    result = check("--diff", "tree")
    assert "+        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(" in result.stdout
    assert "14 CORRECTED" in result.stderr
    let_the_helper_skip_too_much(tree)
    result = check("--diff", "tree")
    assert (result.stdout, result.exit_code) == ("", 1)
    assert "FIX_NOT_PROVEN" in result.stderr
    assert texts(tree) == before


def test_a_tree_that_init_gave_its_helper_is_verified(tree: Path) -> None:
    helper = tree / "mini/layers/moe/utils.py"
    helper.write_text(helper.read_text().partition("def should_skip_post")[0])
    (tree / "mini/layers/moe/__init__.py").write_text("")
    # every reason by hand, and one of two sites lacks one
    full = "not should_allreduce_fusion and not use_reduce_scatter"
    full += " and not should_use_flashinfer_cutlass_moe_fp4_allgather()"
    text = PAIR.replace(
        "from mini.layers.moe import should_skip_post_experts_all_reduce",
        "from mini.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather",
    )
    for axis, guard in (("False", full.replace("not use_reduce_scatter and ", "")), ("True", full)):
        call = f"""not should_skip_post_experts_all_reduce(
            is_tp_path={axis},
            use_reduce_scatter=use_reduce_scatter,
            should_allreduce_fusion=should_allreduce_fusion,
        )"""
        assert call in text
        text = text.replace(call, guard)
    for name in ("pair", "other"):
        (tree / f"mini/models/{name}.py").write_text(text)
    assert moe_lint("init", "tree").exit_code == 0
    result = check("--fix", "tree")
    assert result.exit_code == 0, result.output
    assert "should_skip_post_experts_all_reduce(" in texts(tree)["pair"]
    assert sum("CORRECTED" in line and line.startswith("verified") for line in result.stderr.splitlines()) == 2


@pytest.mark.parametrize("mode", ["--fix", "--diff"])
def test_without_torch_it_is_one_line_and_nothing_is_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    before = texts(tree)
    result = check(mode, "tree")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "moe-lint: error: --verify needs torch: install moe-lint[runtime]\n"
    assert texts(tree) == before


def test_outside_an_engine_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = engine(tmp_path / "tree", {"pair": BY_HAND})
    (tree / "mini/models").rename(tree / "mini/networks")
    before = (tree / "mini/networks/pair.py").read_text()
    result = check("--fix", str(tree))
    assert result.exit_code == 2
    assert result.stderr.endswith(": no engine found (a package with `models` and `layers/moe`); nothing was written\n")
    assert (tree / "mini/networks/pair.py").read_text() == before


@pytest.mark.parametrize("mode", [[], ["--add-ignores", "--reason", "why"]])
def test_there_must_be_something_to_verify(tree: Path, mode: list[str]) -> None:
    result = check(*mode, "tree")
    assert result.exit_code == 2
    assert result.stderr == "moe-lint: error: --verify runs what a fix rewrites: give --fix or --diff too\n"
