"""Bugs in the central predicates of real releases: found where they were, gone where they were repaired."""

from __future__ import annotations

import pytest

from moe_lint.model import Finding
from tests.corpus.releases import judged


def findings(version: str, rule: str) -> list[Finding]:
    return [finding for finding in judged(version).findings if finding.rule == rule]


def place(finding: Finding) -> str:
    return f"{finding.path[finding.path.rindex('sglang/') :]}:{finding.function}"


@pytest.mark.parametrize("version", ["0.5.11", "0.5.20"])
def test_an_fp4_combine_that_the_ep_axis_reduces_again_is_found_at_the_helper(version: str) -> None:
    found = findings(version, "MOE403")
    assert {place(one) for one in found} == {"sglang/srt/layers/moe/utils.py:should_skip_post_experts_all_reduce"}
    (finding,) = (one for one in found if "StandardDispatcher" in one.message)
    assert "does not skip on the EP axis where `StandardDispatcher` sums by itself" in finding.message
    assert finding.witness is not None
    assert (
        "`--tp 2 --dp 2 --ep 2 --enable-dp-attention --quantization modelopt_fp4 "
        "--moe-runner-backend flashinfer_cutlass`" in finding.witness
    )


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.23"])
def test_no_combine_is_reduced_again_before_the_helper_came_and_after_it_was_repaired(version: str) -> None:
    assert findings(version, "MOE403") == []


def test_a_reduce_scatterv_that_the_communicator_does_not_promise_is_found_at_the_promise() -> None:
    (finding,) = findings("0.5.11", "MOE401")
    assert place(finding) == "sglang/srt/layers/communicator.py:should_use_reduce_scatter"
    assert finding.witness is not None
    assert finding.witness.startswith(
        "with `should_use_dp_reduce_scatterv()` true (for example `--tp 2 --dp 2 --ep 2 --enable-dp-attention`) "
    )


def test_a_promise_that_lacks_only_the_models_permission_says_so() -> None:
    own, mhc = sorted(findings("0.5.20", "MOE401"), key=lambda finding: finding.path)
    assert [place(own), place(mhc)] == [
        "sglang/srt/layers/communicator.py:should_use_reduce_scatter",
        "sglang/srt/layers/communicator_mhc.py:should_use_reduce_scatter",
    ]
    assert all("and `self.allow_reduce_scatter` false" in str(finding.witness) for finding in (own, mhc))


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.23"])
def test_promise_and_delivery_agree_before_reduce_scatterv_and_behind_the_stage_boundary(version: str) -> None:
    assert findings(version, "MOE401") == []


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.11", "0.5.23"])
def test_no_central_predicate_has_a_copy_that_lost_a_condition(version: str) -> None:
    assert findings(version, "MOE402") == []
