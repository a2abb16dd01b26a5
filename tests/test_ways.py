"""The ways through a block, over the files of a tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint import formula as formula_module
from moe_lint.engine import Options, run
from moe_lint.formula import Formula
from moe_lint.profile import load_profile
from tests.trees import ROUTED, write_tree

EARLY = """\
if x.shape[0] == 1:
    return finished(x)
"""


def early_returns(folder: Path, finished: str) -> list[str]:
    """The returns that MOE307 reports in a tree whose block hands what it returns early to a function elsewhere."""
    tree = write_tree(folder, EARLY + ROUTED)
    block = tree / "models" / "x.py"
    head = "from engine.models.finish import finished\nfrom engine.distributed import ("
    block.write_text(block.read_text().replace("from engine.distributed import (", head))
    (tree / "models" / "finish.py").write_text(finished)
    report = run(Options((str(tree),), load_profile("sglang"), select=("MOE307",)))
    assert report.problems == ()
    return [Path(f.path).read_text().splitlines()[f.span.line - 1].strip() for f in report.findings]


def test_a_function_of_a_file_without_a_word_of_the_engine_is_followed(tmp_path: Path) -> None:
    finished = "FAST = True\n\n\ndef finished(x):\n    return x if FAST else x * 2\n"
    assert early_returns(tmp_path, finished) == ["return finished(x)"]


def test_what_is_decided_there_by_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    finished = "def finished(x):\n    if fast:\n        return x\n    raise ValueError\n"
    assert early_returns(tmp_path, finished) == []


def test_of_many_returns_no_condition_is_put_in_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each return stands behind the conditions of all before it: what is done for each of them counts three times."""
    calls = 0

    def assign(formula: Formula, name: str, value: Formula) -> Formula:
        nonlocal calls
        calls += 1
        return formula_module.assign(formula, name, value)

    monkeypatch.setattr("moe_lint.ways.assign", assign)
    many = "".join(f"if first{i} and second{i}:\n    return x\n" for i in range(20))
    run(Options((str(write_tree(tmp_path, ROUTED + many)),), load_profile("sglang"), select=("MOE307",)))
    assert calls <= 2 * 21  # of what the caller decides


BY_ANOTHER_NAME = ROUTED.replace("tensor_model_parallel_all_reduce", "tensor_sum")
HEAD = "from engine.distributed import ("


def lost_sums(tree: Path) -> int:
    report = run(Options((str(tree),), load_profile("sglang"), select=("MOE307",)))
    return len(report.findings)


def test_a_sum_of_a_name_that_the_profile_does_not_have_is_not_called_missing(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, BY_ANOTHER_NAME)
    block, distributed = tree / "models" / "x.py", tree / "distributed.py"
    built = block.read_text().replace("self.experts = experts", "self.experts = FusedMoE(config)")
    block.write_text(built.replace(HEAD, f"{HEAD}\n    tensor_sum,"))
    before = distributed.read_text()
    distributed.write_text(f"{before}\n\ndef tensor_sum(x):\n    return get_tp_group().all_reduce(x)\n")
    assert lost_sums(tree) == 0
    distributed.write_text(f"{before}\n\ndef tensor_sum(x):\n    return x\n")
    assert lost_sums(tree) == 1


def test_a_class_that_is_derived_from_experts_is_no_block(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, EARLY.replace("finished(x)", "x") + ROUTED)
    assert lost_sums(tree) == 1
    block = tree / "models" / "x.py"
    derived = block.read_text().replace("class XSparseMoeBlock:", "class XSparseMoeBlock(FusedMoE):")
    block.write_text(derived.replace(HEAD, f"from engine.layers.fused import FusedMoE\n{HEAD}"))
    (tree / "layers" / "fused.py").write_text("class FusedMoE:\n    pass\n")
    assert lost_sums(tree) == 0


def test_in_a_tree_in_which_nothing_says_who_else_could_sum_nothing_is_claimed(tmp_path: Path) -> None:
    guard = EARLY.replace("finished(x)", "x") + "x = tensor_model_parallel_all_reduce(x)\n"
    tree = write_tree(tmp_path, guard, helper=False, absorber=False, flags="")
    assert lost_sums(tree) == 0


@pytest.mark.parametrize(
    ("collective", "lost"),
    [
        ("attn_tp_all_reduce", 1),
        ("get_attention_tp_group().all_reduce", 1),
        ("self.group.all_reduce", 0),
        ("get_world_group().all_reduce", 0),
        ("get_tp_group().all_reduce", 0),
    ],
)
def test_a_sum_over_the_attention_group_alone_leaves_out_ranks(tmp_path: Path, collective: str, lost: int) -> None:
    tree = write_tree(tmp_path, ROUTED.replace("tensor_model_parallel_all_reduce", collective))
    assert lost_sums(tree) == lost


def test_a_sum_over_the_attention_group_beside_one_over_all_ranks_is_another_quantity(tmp_path: Path) -> None:
    other = "if get_moe_a2a_backend().is_alpha():\n    return attn_tp_all_reduce(x)\n"
    assert lost_sums(write_tree(tmp_path, other + ROUTED)) == 0
