"""The reference runtime on real releases: the double reduction of qwen3_moe, before and after it was repaired."""

from __future__ import annotations

import pytest

from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.verdicts import ModelReport, Verdict
from tests.corpus.releases import release


@pytest.fixture(scope="module")
def report() -> dict[str, ModelReport]:
    models = verify(release("0.5.10.post1"), release("0.5.11"), ("qwen3_moe", "deepseek_v2"), Settings()).models
    return {model.model: model for model in models}


def test_the_double_reduction_is_exactly_the_number_of_expert_parallel_ranks(report: dict[str, ModelReport]) -> None:
    cases = report["qwen3_moe.Qwen3MoeSparseMoeBlock"].cases
    corrected = {c.case: c.before.scale for c in cases if c.level == "block" and c.verdict is Verdict.CORRECTED}
    assert corrected == {
        "tp2 ep2 dp2 max-len reduce-scatter": pytest.approx(2.0),
        "tp4 ep4 dp2 max-len reduce-scatter": pytest.approx(4.0),
        "tp4 ep2 dp4 max-len reduce-scatter": pytest.approx(2.0),
        "tp4 ep4 dp4 max-len reduce-scatter": pytest.approx(4.0),
    }


def test_the_layers_own_communicator_shows_it_too(report: dict[str, ModelReport]) -> None:
    cases = report["qwen3_moe.Qwen3MoeSparseMoeBlock"].cases
    corrected = {c.case for c in cases if c.level == "layer" and c.verdict is Verdict.CORRECTED}
    assert {"tp2 ep2 dp2 max-len", "tp4 ep4 dp4 max-len"} <= corrected


def test_nothing_is_broken_and_no_placeholder_is_reached(report: dict[str, ModelReport]) -> None:
    for model in report.values():
        assert model.problem == ""
        assert [c.case for c in model.cases if c.regression or c.verdict is Verdict.UNMODELLED] == []


def test_one_rank_agrees_with_the_dense_form(report: dict[str, ModelReport]) -> None:
    for model in report.values():
        oracle = model.oracle("block")
        assert oracle is not None
        assert oracle.dense, oracle
        assert oracle.error is not None
        assert oracle.error < 1e-6
