"""What a witness says about how to see a wrong number: reason and launch configuration."""

from __future__ import annotations

from pathlib import Path

from moe_lint.engine import Options, run
from moe_lint.model import Finding
from moe_lint.profile import load_profile
from tests.trees import FORGETFUL, ROUTED, write_tree

SUM = "x = tensor_model_parallel_all_reduce(x)"


def findings(folder: Path, guard: str, rule: str) -> list[Finding]:
    tree = write_tree(folder, guard)
    return list(run(Options((str(tree),), load_profile("sglang"), select=(rule,))).findings)


def witness(folder: Path, guard: str, rule: str = "MOE001") -> str:
    (finding,) = findings(folder, guard, rule)
    assert finding.witness is not None
    return finding.witness


def test_the_reason_that_takes_the_fewest_options_is_told(tmp_path: Path) -> None:
    assert witness(tmp_path, f"if not should_use_dp_reduce_scatterv():\n    {SUM}\n").startswith(
        "with `should_allreduce_fusion=True` (for example `--tp 2 --enable-flashinfer-allreduce-fusion`) "
    )


def test_a_reason_that_no_option_is_known_for_is_told_with_what_must_hold(tmp_path: Path) -> None:
    assert witness(tmp_path, FORGETFUL).startswith(
        "with `should_use_dp_reduce_scatterv()` true (for example `--tp 2`, where `_DP_SCATTER` holds) "
    )


def test_an_expert_parallel_sum_needs_several_expert_ranks(tmp_path: Path) -> None:
    guard = "if self.ep_size > 1 and not use_reduce_scatter:\n    x = moe_expert_parallel_all_reduce(x)\n"
    assert "`--tp 2 --ep 2 --enable-flashinfer-allreduce-fusion`" in witness(tmp_path, guard)


def test_a_reduction_that_never_runs_is_lost_on_any_two_ranks(tmp_path: Path) -> None:
    guard = ROUTED.replace("and not ", "and ")
    assert "with no skip reason at all (for example `--tp 2`) this all-reduce does not run" in witness(
        tmp_path, guard, "MOE007"
    )


def test_a_reduction_left_to_an_a2a_backend_is_not_called_lost(tmp_path: Path) -> None:
    guard = f"if get_moe_a2a_backend().is_none() and not use_reduce_scatter:\n    {SUM}\n"
    told = witness(tmp_path, guard)
    assert "each rank keeps its own partial sum" not in told
    assert told.endswith("this all-reduce does not run: right only if the backend's combine sums")


def test_the_branch_for_a_single_expert_rank_is_judged_by_its_own_conditions(tmp_path: Path) -> None:
    guard = f"""
if self.ep_size > 1:
    x = x * 2
else:
    if self.tp_size > 1 and not should_allreduce_fusion:
        {SUM}
"""
    assert findings(tmp_path / "as-unguarded", guard, "MOE002") == []
    assert witness(tmp_path / "by-hand", guard).startswith("with `use_reduce_scatter=True` ")
