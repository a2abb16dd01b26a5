"""What stands in a method or function of its own is judged as if it stood at the call."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.engine import Options, run
from moe_lint.profile import load_profile
from moe_lint.rules import Case
from moe_lint.rules._cases import ASK, BARE, CALL, POST, ROUTED, SETTLE, block, experts, layer_case, method

HELPER = (
    "should_skip_post_experts_all_reduce(is_tp_path=True, use_reduce_scatter=use_reduce_scatter, "
    "should_allreduce_fusion=should_allreduce_fusion)"
)
BY_HAND = (
    "should_allreduce_fusion or use_reduce_scatter or should_use_dp_reduce_scatterv() "
    "or should_use_flashinfer_cutlass_moe_fp4_allgather()"
)
LAYER = ASK + CALL + SETTLE
SUM = "def tp_sum(x):\n    return tensor_model_parallel_all_reduce(x)"
OWN_SUM = "def {}(self, x):\n    return tensor_model_parallel_all_reduce(x)"


def found(tmp_path: Path, case: Case, *select: str) -> list[tuple[str, str | None]]:
    """(rule, function) of what is found in a pretend tree, in order."""
    for path, text in case.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    report = run(Options((str(tmp_path),), load_profile("sglang"), select=select))
    assert report.problems == ()
    return sorted((finding.rule, finding.function) for finding in report.findings)


@pytest.mark.parametrize("guard", [HELPER, BY_HAND])
def test_a_guard_around_the_call_of_a_function_that_only_sums_guards_the_sum(tmp_path: Path, guard: str) -> None:
    case = layer_case("x", SUM, block(experts(f"\nif not ({guard}):\n    x = tp_sum(x)")), layer=LAYER)
    assert not {"MOE002", "MOE201", "MOE307"} & {rule for rule, _ in found(tmp_path, case)}


def test_a_function_that_only_sums_and_is_called_without_asking_is_reported(tmp_path: Path) -> None:
    case = layer_case("x", SUM, block(experts("x = tp_sum(x)")), layer=LAYER)
    assert ("MOE002", "tp_sum") in found(tmp_path, case)


def test_one_call_without_asking_is_enough(tmp_path: Path) -> None:
    forward = f"if x.shape[0] > 9:\n    return tp_sum(x)\nif not {HELPER}:\n    x = tp_sum(x)"
    case = layer_case("x", SUM, block(experts(forward)), layer=LAYER)
    assert ("MOE002", "tp_sum") in found(tmp_path, case)


@pytest.mark.parametrize("name", ["tp_sum", "all_reduce"])
def test_a_method_that_only_sums_under_a_right_guard_brings_nothing(tmp_path: Path, name: str) -> None:
    parts = (
        method(f"x = self.routed(x)\nif self.tp_size > 1 and not {HELPER}:\n    x = self.{name}(x)"),
        experts("", "routed", "x"),
        OWN_SUM.format(name),
    )
    assert found(tmp_path, layer_case("x", block(*parts), layer=LAYER)) == []


def test_a_method_named_as_a_reduction_sums_over_the_axis_that_it_sums_over(tmp_path: Path) -> None:
    parts = experts("\nif not should_allreduce_fusion:\n    x = self.all_reduce(x)"), OWN_SUM.format("all_reduce")
    assert found(tmp_path, layer_case("x", block(*parts), layer=LAYER)) == [("MOE001", "forward")]


def test_a_truth_value_that_a_method_returns_is_no_object(tmp_path: Path) -> None:
    questions = (
        "self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch), "
        "self.layer_communicator.should_use_reduce_scatter(batch)"
    )
    asked = f"def asked(self, batch):\n    return {questions}"
    layer = f"should_allreduce_fusion, scatter = self.asked(batch)\n{CALL.replace('use_reduce_scatter', 'scatter')}"
    case = layer_case("x", block(experts(ROUTED)), layer=layer + POST)
    text = case.files["engine/models/pretend.py"]
    text += "\n    " + asked.replace("\n", "\n    ") + "\n"
    changed = Case("x", {**case.files, "engine/models/pretend.py": text})
    assert ("MOE202", "forward") not in found(tmp_path, changed)


def test_a_bare_sum_in_front_of_a_guarded_one_is_told_once(tmp_path: Path) -> None:
    twice = experts(f"x = tensor_model_parallel_all_reduce(x)\n{ROUTED.strip()}")
    assert found(tmp_path, layer_case("x", block(twice), layer=LAYER)) == [("MOE309", "forward")]


def test_of_two_bare_sums_one_is_one_too_many_and_the_other_is_unguarded(tmp_path: Path) -> None:
    twice = experts(f"x = tensor_model_parallel_all_reduce(x)\n{BARE.strip()}")
    rules = [rule for rule, _ in found(tmp_path, layer_case("x", block(twice), layer=LAYER))]
    assert rules.count("MOE309") == 1
    assert rules.count("MOE002") == 1


@pytest.mark.parametrize("shared", ["", "\nself.shared_experts = MLP(config, reduce_results=False)"])
def test_a_block_that_never_sums_is_told_once(tmp_path: Path, shared: str) -> None:
    init = f"self.experts = FusedMoE(config, reduce_results=False){shared}"
    body = "return x + self.shared_experts(x)" if shared else "return x"
    case = layer_case("x", block(experts(body), init=init), layer=LAYER)
    assert found(tmp_path, case, "MOE304", "MOE307") == [("MOE304", "__init__")]


def test_experts_that_sum_for_themselves_are_told_by_the_rule_about_that(tmp_path: Path) -> None:
    init = "self.experts = FusedMoE(config, reduce_results=True)"
    case = layer_case("x", block(experts(BARE), init=init), layer=LAYER)
    assert found(tmp_path, case, "MOE002", "MOE306") == [("MOE306", "forward")]
