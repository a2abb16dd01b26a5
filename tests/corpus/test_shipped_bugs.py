"""Bugs that shipped: each is reported at its place on the release that had it, and not on the one that fixed it.

What is compared is (rule, line) in the file of the bug.
"""

from __future__ import annotations

import pytest

from tests.corpus.releases import findings


def in_file(version: str, name: str, *rules: str) -> dict[tuple[str, int], str]:
    """(rule, line) -> the whole text of the findings of some rules in one file."""
    return {
        (f.rule, f.span.line): " ".join(part for part in (f.message, f.witness, f.remedy) if part)
        for f in findings(version)
        if f.path.endswith(name) and f.rule in rules
    }


def test_ep_guard_that_lacks_what_the_tp_guard_below_has() -> None:
    found = in_file("0.5.10.post1", "models/qwen3_moe.py", "MOE001", "MOE101")
    assert "`use_reduce_scatter`" in found["MOE101", 329]
    assert "`use_reduce_scatter`" in found["MOE001", 329]
    assert in_file("0.5.11", "models/qwen3_moe.py", "MOE001", "MOE101") == {}


def test_guard_that_knows_fusion_only() -> None:
    found = in_file("0.5.11", "models/gpt_oss.py", "MOE001")
    assert found.keys() == {("MOE001", 260)}
    assert "`should_use_dp_reduce_scatterv()`" in found["MOE001", 260]
    assert "--enable-dp-attention" in found["MOE001", 260]
    assert in_file("0.5.20", "models/gpt_oss.py", "MOE001") == {}


def test_reduce_scatter_that_is_allowed_and_never_asked_for() -> None:
    found = in_file("0.5.3", "models/glm4_moe.py", "MOE204")
    assert found.keys() == {("MOE204", 693)}
    assert "never asks `should_use_reduce_scatter`" in found["MOE204", 693]
    assert "--enable-dp-attention" in found["MOE204", 693]
    assert in_file("0.5.4", "models/glm4_moe.py", "MOE204") == {}


def test_batch_that_lands_on_a_flag() -> None:
    found = in_file("0.5.9", "models/qwen3_5.py", "MOE202")
    assert found.keys() == {("MOE202", 403), ("MOE202", 636)}
    for text in found.values():
        assert "`forward_batch` is passed by position and lands on `should_allreduce_fusion`" in text
        assert "`Qwen2MoeMLP.forward`" in text
    assert in_file("0.5.10.post1", "models/qwen3_5.py", "MOE202") == {}


def test_a_branch_that_is_never_built_is_not_a_positional_slip() -> None:
    """Its layers call two kinds of blocks with one order, and build only the kind that takes it."""
    for version in ("0.5.9", "0.5.10.post1", "0.5.11"):
        assert in_file(version, "models/qwen2_moe.py", "MOE202") == {}
        assert in_file(version, "models/qwen3_next.py", "MOE202") == {}


def test_cpu_path_that_knows_fewer_reasons_than_its_siblings() -> None:
    found = in_file("0.5.10.post1", "models/deepseek_v2.py", "MOE102", "MOE201")
    assert found.keys() == {("MOE102", 758), ("MOE201", 627)}
    assert "`use_reduce_scatter`" in found["MOE201", 627]
    assert in_file("0.5.19", "models/deepseek_v2.py", "MOE102", "MOE201") == {}


@pytest.mark.parametrize(("version", "line"), [("0.5.10.post1", 861), ("0.5.11", 866)])
def test_sum_left_to_the_next_layer_without_a_mark(version: str, line: int) -> None:
    found = in_file(version, "models/bailing_moe_linear.py", "MOE301")
    assert found.keys() == {("MOE301", line)}
    assert "never sets `_sglang_needs_allreduce_fusion`" in found["MOE301", line]
    assert "--enable-flashinfer-allreduce-fusion" in found["MOE301", line]
    assert in_file("0.5.16", "models/bailing_moe_linear.py", "MOE301") == {}


def test_last_layer_that_defers_to_nobody() -> None:
    found = in_file("0.5.11", "models/qwen3_next.py", "MOE302")
    assert found.keys() == {("MOE302", 542), ("MOE302", 713)}
    for text in found.values():
        assert "without `is_last_layer`" in text
        assert "--enable-flashinfer-allreduce-fusion" in text
    assert in_file("0.5.21", "models/qwen3_next.py", "MOE302") == {}


def test_literal_flag_with_the_skip_written_again_around_it() -> None:
    found = in_file("0.5.11", "models/step3p5.py", "MOE001", "MOE006", "MOE201")
    assert found.keys() == {("MOE006", 637), ("MOE001", 645), ("MOE201", 647)}
    assert "`should_allreduce_fusion=True`" in found["MOE006", 637]
    # the release that moved the layer behind a boundary told its dense block, and kept the literal and the hand-written
    # skip, which goes wrong with an a2a backend; the next one took them out
    later = in_file("0.5.21", "models/step3p5.py", "MOE001", "MOE006", "MOE201")
    assert later.keys() == {("MOE006", 617), ("MOE001", 621)}
    assert "--moe-a2a-backend pplx" in later["MOE001", 621]
    assert in_file("0.5.22", "models/step3p5.py", "MOE001", "MOE006", "MOE201") == {}


def test_flag_that_a_dense_block_is_not_told() -> None:
    text = in_file("0.5.11", "models/step3p5.py", "MOE201")["MOE201", 647]
    assert "`use_reduce_scatter` is known here and not handed to `Step3p5MLP.forward`" in text
    assert "should_allreduce_fusion" not in text  # the layer takes that one back for its dense blocks


def test_permission_without_any_flag() -> None:
    found = in_file("0.5.10.post1", "models/minimax_m2.py", "MOE002", "MOE204")
    assert found.keys() == {("MOE002", 407), ("MOE204", 767)}
    assert in_file("0.5.11", "models/minimax_m2.py", "MOE002", "MOE204") == {}


@pytest.mark.parametrize(("name", "line"), [("models/longcat_flash.py", 291), ("models/step3_vl.py", 169)])
def test_guard_on_size_alone_below_a_communicator(name: str, line: int) -> None:
    assert in_file("0.5.11", name, "MOE002").keys() == {("MOE002", line)}
    assert in_file("0.5.21", name, "MOE002") == {}


def test_partial_sums_sent_to_the_next_pipeline_stage_until_the_model_settles_them() -> None:
    found = in_file("0.5.11", "models/qwen2_moe.py", "MOE303")
    assert found.keys() == {("MOE303", 814)}
    assert "next pipeline stage" in found["MOE303", 814]
    assert in_file("0.5.20", "models/qwen2_moe.py", "MOE303") == {}  # there the model reduces marked tensors first


@pytest.mark.parametrize(("name", "line"), [("deepseek_v2.py", 2873), ("nemotron_h.py", 908), ("qwen3_5.py", 1813)])
def test_partial_sums_sent_by_a_model_whose_layers_are_chosen_at_run_time(name: str, line: int) -> None:
    found = in_file("0.5.20", f"models/{name}", "MOE303")
    assert found.keys() == {("MOE303", line)}


def test_replicated_shared_expert_that_joins_a_deferred_sum() -> None:
    found = in_file("0.5.20", "models/laguna.py", "MOE308")
    assert found.keys() == {("MOE308", 234)}
    assert "`shared_out`" in found["MOE308", 234]
    assert in_file("0.5.23", "models/laguna.py", "MOE308") == {}


def test_shared_experts_that_are_replicated_for_an_a2a_backend_and_reduced_all_the_same() -> None:
    # from 0.5.20 on it joins in either arm of a condition, in one of them by another method
    for version, line in (("0.5.18", 352), ("0.5.20", 382), ("0.5.21", 368)):
        found = in_file(version, "models/nemotron_h.py", "MOE306")
        assert found.keys() == {("MOE306", line)}
        assert "`--tp 2 --ep 2 --moe-a2a-backend deepep`" in found["MOE306", line]
    assert in_file("0.5.22", "models/nemotron_h.py", "MOE306") == {}


@pytest.mark.parametrize("version", ["0.5.21", "0.5.22", "0.5.23"])
def test_where_the_boundary_of_the_layer_owns_the_sums_no_rule_on_callers_speaks(version: str) -> None:
    speaking = {f.rule for f in findings(version) if "MOE200" < f.rule < "MOE400"}
    assert speaking <= {"MOE306"}  # which is about what the block itself builds


def test_backends_listed_by_hand_before_a_wrapper() -> None:
    found = in_file("0.5.21", "models/qwen2_moe.py", "MOE103")
    assert found.keys() == {("MOE103", 824)}
    assert "`is_mooncake()`" in found["MOE103", 824]
    assert "is_pplx" not in found["MOE103", 824]  # the helper skips for it
    assert in_file("0.5.22", "models/qwen2_moe.py", "MOE103") == {}  # every layer takes the sum over


def test_backends_listed_by_hand_beside_one_of_another_family() -> None:
    found = in_file("0.5.15", "models/mimo_v2.py", "MOE103")
    assert found.keys() == {("MOE103", 323)}
    assert "`--tp 2 --ep 2 --moe-a2a-backend mori`" in found["MOE103", 323]


def test_guard_that_asks_one_half_of_the_helper() -> None:
    found = in_file("0.5.21", "models/longcat_flash.py", "MOE001")
    assert found.keys() == {("MOE001", 338)}
    assert "`should_use_flashinfer_cutlass_moe_fp4_allgather()`" in found["MOE001", 338]
    assert "is_flashinfer" not in found["MOE001", 338]  # the guard asks for no backend at all
    assert in_file("0.5.22", "models/longcat_flash.py", "MOE001", "MOE002") == {}


def test_layer_that_sums_where_it_has_told_its_block_not_to() -> None:
    assert in_file("0.5.22", "models/deepseek_v4.py", "MOE001", "MOE002") == {}


@pytest.mark.parametrize("version", ["0.5.22", "0.5.23"])
def test_nothing_is_found_where_every_layer_has_a_boundary_that_sums(version: str) -> None:
    assert findings(version) == ()
