"""The law: verdicts by enumeration, and what a witness says about how to see a wrong number."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_lint.engine import Options, run
from moe_lint.model import Finding, Verdict
from moe_lint.profile import load_profile
from moe_lint.rules._central import communicator
from tests.runs import moe_lint
from tests.trees import COMPLETE, FORGETFUL, ROUTED, model, write_tree

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


# --- verdicts


def verdict(tree: Path) -> Verdict:
    (row,) = [row for row in run(Options((str(tree),), load_profile("sglang"), law=True)).rows if row.post_experts]
    assert row.law is not None
    return row.law


def verdict_on(folder: Path, guard: str, **more: bool) -> Verdict:
    return verdict(write_tree(folder, guard, **more))


def test_a_guard_that_asks_the_helper_sums_once(tmp_path: Path) -> None:
    assert verdict_on(tmp_path, ROUTED).verdict == "once"
    assert verdict_on(tmp_path / "by-hand", COMPLETE).verdict == "once"


def test_a_forgotten_reason_is_a_doubled_sum_with_its_configuration(tmp_path: Path) -> None:
    found = verdict_on(tmp_path, COMPLETE.replace("    and not use_reduce_scatter\n", ""))
    assert found == Verdict(
        "doubled",
        "`--tp 2 --dp 2 --enable-dp-attention` in a batch padded to the longest rank",
        "the block sums, and so does whoever acts on `use_reduce_scatter`",
    )


def test_a_sum_that_only_an_a2a_backend_lets_run_is_lost_without_one(tmp_path: Path) -> None:
    found = verdict_on(tmp_path, f"if get_moe_a2a_backend().is_alpha():\n    {SUM}\n")
    assert found == Verdict("lost", "`--tp 2`", "neither the block nor anybody after it sums")


def test_a_flag_that_no_layer_asks_for_doubles_nothing(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, COMPLETE.replace("    and not should_allreduce_fusion\n", ""))
    assert verdict(tree).verdict == "doubled"
    path = tree / "models" / "x.py"
    asked = "self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch)"
    path.write_text(path.read_text().replace(asked, "False"))
    assert verdict(tree).verdict == "once"


def test_a_sum_in_the_dispatcher_counts(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path,
        ROUTED.replace("is_tp_path=True", "is_tp_path=False").replace("tensor_model_parallel", "moe_expert_parallel"),
    )
    assert verdict(tree).verdict == "once"
    (tree / "layers" / "moe" / "dispatcher.py").write_text(
        "from engine.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather\n\n\n"
        "class Dispatcher:\n"
        "    def combine(self, x):\n"
        "        if should_use_flashinfer_cutlass_moe_fp4_allgather():\n"
        "            get_tp_group().reduce_scatterv(x)\n"
        "        return x\n"
    )
    found = verdict(tree)
    assert (found.verdict, found.configuration) == ("doubled", "`--tp 2 --ep 2`, where `_FP4_GATHER` holds")


#: A wrapper whose sums stand in a function of their own, under conditions that it is handed.
TWO_STEPS = """


def reduce_moe_output(x, *, use_reduce_scatter=False, should_allreduce_fusion=False):
    return _sum(
        x,
        reduce_ep=get_moe_ep_size() > 1 and not should_skip_post_experts_all_reduce(
            is_tp_path=False,
            use_reduce_scatter=use_reduce_scatter,
            should_allreduce_fusion=should_allreduce_fusion,
        ),
        reduce_tp=get_tp_world_size() > 1 and not {},
    )


def _sum(x, *, reduce_ep, reduce_tp):
    if reduce_ep:
        x = moe_expert_parallel_all_reduce(x)
    if reduce_tp:
        x = moe_tensor_model_parallel_all_reduce(x)
    return x
"""
WRAPPED = """
x = reduce_moe_output(
    x, use_reduce_scatter=use_reduce_scatter, should_allreduce_fusion=should_allreduce_fusion
)
"""


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (ROUTED[ROUTED.index("should_skip") : ROUTED.index("):") + 1], "once"),
        ("(use_reduce_scatter or should_allreduce_fusion)", "doubled"),
        ("get_moe_a2a_backend().is_none()", "lost"),
    ],
)
def test_the_sums_of_a_wrapper_are_found_behind_the_function_that_it_hands_its_conditions(
    condition: str, expected: str, tmp_path: Path
) -> None:
    tree = write_tree(tmp_path, WRAPPED)
    utils = tree / "layers" / "moe" / "utils.py"
    utils.write_text(utils.read_text() + TWO_STEPS.format(condition))
    rows = run(Options((str(tree),), load_profile("sglang"), law=True)).rows
    (law,) = [row.law for row in rows if row.path.endswith("x.py") and row.post_experts]
    assert law is not None
    assert (law.verdict, law.reason.split(":")[0]) == (expected, "inside `reduce_moe_output`")
    assert (law.configuration is not None) is (expected != "once")


@pytest.mark.parametrize(("axis", "expected"), [("True", "once"), ("False", "undecided")])
def test_without_an_absorber_the_experts_combine_alone_may_have_summed(
    axis: str, expected: str, tmp_path: Path
) -> None:
    guard = f"""
if self.moe_tp_size > 1 and not should_skip_post_experts_all_reduce(
    is_tp_path={axis}, use_reduce_scatter=use_reduce_scatter
):
    {SUM}
"""
    tree = write_tree(tmp_path, guard, absorber=False)
    utils = tree / "layers" / "moe" / "utils.py"
    kept = utils.read_text().replace("    if should_use_dp_reduce_scatterv():\n        return True\n", "")
    utils.write_text(kept)
    (tree / "layers" / "moe" / "dispatcher.py").write_text(
        "from engine.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather\n\n\n"
        "class Dispatcher:\n"
        "    def combine(self, x):\n"
        "        if should_use_flashinfer_cutlass_moe_fp4_allgather():\n"
        "            get_tp_group().reduce_scatterv(x)\n"
        "        return x\n"
    )
    assert verdict(tree).verdict == expected


def test_without_an_absorber_a_block_that_always_sums_sums_once(tmp_path: Path) -> None:
    assert verdict_on(tmp_path, f"if self.tp_size > 1:\n    {SUM}\n", absorber=False).verdict == "once"


@pytest.mark.parametrize(
    ("guard", "absorber", "reason"),
    [
        (
            ROUTED,
            False,
            "the block leaves its sum out for `should_use_dp_reduce_scatterv()` or "
            "`should_use_flashinfer_cutlass_moe_fp4_allgather()`, and no absorber was found around it",
        ),
        (f"if self.reduce_results:\n    {SUM}\n", True, "an argument decides who sums: each caller answers for itself"),
        ("x = self.norm(tensor_model_parallel_all_reduce(x))\n", True, "a norm consumes the sum on the spot"),
        ("x = world_all_reduce(x)\n", True, "the group is not known to be TP or EP"),
    ],
)
def test_what_cannot_be_decided_is_said_to_be_undecided_and_why(
    guard: str, absorber: bool, reason: str, tmp_path: Path
) -> None:
    assert verdict_on(tmp_path, guard, absorber=absorber) == Verdict("undecided", None, reason)


def test_behind_a_boundary_that_takes_sums_by_contract_nothing_is_decided(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, "x = reduce_moe_output(x)\n", wrapper=True, flags="")
    utils = tree / "layers" / "moe" / "utils.py"
    text = utils.read_text()
    text = text.replace("    use_reduce_scatter: bool = False,\n    should_allreduce_fusion: bool = False,\n", "")
    text = text.replace("    if use_reduce_scatter or should_allreduce_fusion:\n        return True\n", "")
    text = text.replace("        use_reduce_scatter=use_reduce_scatter,\n", "")
    text = text.replace("        should_allreduce_fusion=should_allreduce_fusion,\n", "")
    text = text.replace("*, use_reduce_scatter: bool = False, should_allreduce_fusion: bool = False\n", "\n")
    utils.write_text(text)
    (tree / "layers" / "communicator.py").write_text("def make_stage_boundary(*stages):\n    return stages\n")
    (tree / "models" / "x.py").write_text(
        model("x = reduce_moe_output(x)\n", flags="").replace("LayerCommunicator()", "make_stage_boundary(self.mlp)")
    )
    rows = run(Options((str(tree),), load_profile("sglang"), law=True)).rows
    laws = {row.law.verdict for row in rows if row.law is not None and row.path.endswith("x.py")}
    assert laws == {"undecided"}


def test_rows_have_no_verdict_unless_asked_for(tmp_path: Path) -> None:
    rows = run(Options((str(write_tree(tmp_path, ROUTED)),), load_profile("sglang"))).rows
    assert {row.law for row in rows} == {None}


@pytest.mark.parametrize(
    "chosen",
    [
        "(\n            LayerCommunicator\n            if config.plain\n            else None\n        )",
        "Own if config.own else LayerCommunicator",
        "make_layer_communicator()",
    ],
)
def test_an_absorber_that_is_chosen_or_made_elsewhere_is_one(chosen: str, tmp_path: Path) -> None:
    tree = write_tree(tmp_path, FORGETFUL)
    path = tree / "models" / "x.py"
    path.write_text(path.read_text().replace("self.layer_communicator = LayerCommunicator()", f"chosen = {chosen}"))
    (row,) = [row for row in run(Options((str(tree),), load_profile("sglang"))).rows if row.post_experts]
    assert row.absorber is True


def test_a_communicator_named_in_an_annotation_is_not_built_there(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, FORGETFUL)
    path = tree / "models" / "x.py"
    built = "self.layer_communicator = LayerCommunicator()"
    path.write_text(path.read_text().replace(built, "self.layer_communicator: LayerCommunicator = config.given"))
    (row,) = [row for row in run(Options((str(tree),), load_profile("sglang"))).rows if row.post_experts]
    assert row.absorber is False


# --- against a count by hand

NAMES = {
    "should_allreduce_fusion": "fusion",
    "use_reduce_scatter": "scatter",
    "should_use_dp_reduce_scatterv()": "scatterv",
    "should_use_flashinfer_cutlass_moe_fp4_allgather()": "fp4",
    "get_moe_a2a_backend().is_alpha()": "alpha",
}


def guards() -> st.SearchStrategy[str]:
    return st.recursive(
        st.sampled_from(sorted(NAMES)),
        lambda inner: st.one_of(
            inner.map(lambda one: f"not ({one})"),
            st.tuples(inner, inner).map(" and ".join).map(lambda both: f"({both})"),
            st.tuples(inner, inner).map(" or ".join).map(lambda both: f"({both})"),
        ),
        max_leaves=5,
    )


def by_hand(guard: str) -> str:
    """The verdict from counting the sums in every feasible configuration, one by one."""
    for name, short in NAMES.items():
        guard = guard.replace(name, short)
    twice = never = False
    for fusion, scatter, rsv, gather, alpha in product((False, True), repeat=5):
        if (fusion and scatter) or (alpha and (fusion or scatter)):
            continue  # fusion without, reduce-scatter with DP attention; neither beside an a2a backend
        scatterv, fp4 = rsv and not alpha, gather and not alpha
        state = {"fusion": fusion, "scatter": scatter, "scatterv": scatterv, "fp4": fp4, "alpha": alpha}
        block = eval(guard, {}, state)
        absorber = fusion or scatter or scatterv or fp4
        twice = twice or (block and absorber)
        never = never or (not block and not absorber and not alpha)
    return "doubled" if twice else "lost" if never else "once"


@given(guards())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_verdict_is_that_of_a_count_over_every_configuration(
    tmp_path_factory: pytest.TempPathFactory, guard: str
) -> None:
    found = verdict_on(tmp_path_factory.mktemp("tree"), f"if {guard}:\n    {SUM}\n")
    assert found.verdict == by_hand(guard)
    assert (found.configuration is not None) is (found.verdict in ("doubled", "lost"))


# --- as the matrix shows it


def shown(tree: Path, *arguments: str) -> str:
    return moe_lint("matrix", *arguments, str(tree)).stdout


def test_the_matrix_has_the_verdict_in_its_table_and_the_configuration_below(tmp_path: Path) -> None:
    text = shown(write_tree(tmp_path, COMPLETE.replace("    and not use_reduce_scatter\n", "")))
    assert " sums" in text.splitlines()[4]
    below = [line for line in text.splitlines() if "x.py" in line][-1]
    assert below.endswith(
        "doubled with `--tp 2 --dp 2 --enable-dp-attention` in a batch padded to the longest rank: "
        "the block sums, and so does whoever acts on `use_reduce_scatter`"
    )


def test_the_matrix_counts_what_is_undecided_by_its_reason(tmp_path: Path) -> None:
    text = shown(write_tree(tmp_path, ROUTED, absorber=False))
    (counted,) = [line for line in text.splitlines() if line.startswith("undecided")]
    assert counted.startswith("undecided (1): the block leaves its sum out for `should_use_dp_reduce_scatterv()` or ")


def test_the_json_matrix_has_the_verdict_of_each_reduction_after_the_experts(tmp_path: Path) -> None:
    rows = json.loads(shown(write_tree(tmp_path, ROUTED), "--format", "json"))["sites"]
    assert [row["law"] for row in rows if row["post_experts"]] == [
        {
            "verdict": "once",
            "configuration": None,
            "reason": "block and absorber take turns in every configuration",
        }
    ]
    assert {str(row["law"]) for row in rows if not row["post_experts"]} <= {"None"}


def test_a_dispatcher_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, ROUTED)
    broken = tree / "layers" / "moe" / "dispatcher.py"
    broken.write_text("class Dispatcher:\n    def combine(self, x):\n        get_tp_group().reduce_scatterv(\n")
    report = run(Options((str(tree),), load_profile("sglang")))
    assert [(Path(problem.path).name, problem.reason.value) for problem in report.problems] == [
        ("dispatcher.py", "syntax-error")
    ]
    assert report.exit_code == 2


@pytest.mark.parametrize(
    ("permission", "reason"),
    [
        ("allow_reduce_scatter=True", "should_use_flashinfer_cutlass_moe_fp4_allgather()"),
        ("", "should_use_dp_reduce_scatterv()"),
    ],
)
def test_a_state_in_which_the_communicator_sets_a_flag_that_the_guard_asks_is_no_witness(
    permission: str, reason: str, tmp_path: Path
) -> None:
    tree = write_tree(tmp_path, FORGETFUL)
    promise = (
        "return self.allow_reduce_scatter and self.step is Steps.scatter "
        "and (should_use_dp_reduce_scatterv() or batch.padded)"
    )
    step = "if should_use_dp_reduce_scatterv():\n    get_tp_group().reduce_scatterv(x)"
    (tree / "layers" / "communicator.py").write_text(str(communicator(promise, f"\n{step}")))
    for path in (tree / "models").glob("*.py"):
        path.write_text(path.read_text().replace("LayerCommunicator()", f"LayerCommunicator({permission})"))
    (finding,) = run(Options((str(tree),), load_profile("sglang"), select=("MOE001",))).findings
    assert finding.witness is not None
    assert finding.witness.startswith(f"with `{reason}` true ")
