"""Sabotages of real model files: a few kinds here, all of them in docs/mutation.md."""

from __future__ import annotations

import pytest

from moe_lint.profile import load_profile
from reference_runtime.plan import Settings
from tests.corpus.releases import release
from tests.mutation.driver import Result, survey

PROFILE = load_profile("sglang")
MODELS = ("qwen3_moe", "bailing_moe", "llama4")
KINDS = {"flag dropped", "negation lost", "reduced twice", "reduced too early", "guards of a pair swapped"}
#: The TP half of a pair that asks as the EP half does.
FLIPPED = "is_tp_path=False"


@pytest.fixture(scope="module")
def surveyed() -> list[Result]:
    settings = Settings(levels=("block",))
    return survey(release("0.5.11"), MODELS, PROFILE, settings, lambda m: m.kind in KINDS or m.what == FLIPPED)


@pytest.fixture
def results(surveyed: list[Result]) -> list[Result]:
    return [result for result in surveyed if result.mutant.kind in KINDS]


def test_every_sabotage_of_a_real_file_is_caught(results: list[Result]) -> None:
    assert {result.block.module for result in results} == set(MODELS)
    assert {result.mutant.kind for result in results} == KINDS
    assert [(str(r.block), r.mutant.kind, r.mutant.what, r.outcome) for r in results if r.outcome != "caught"] == []


def test_a_dropped_flag_is_caught_by_the_case_that_sets_it(results: list[Result]) -> None:
    for result in results:
        refuted = result.trials[0].refuted
        if result.mutant.kind == "flag dropped":
            assert refuted is not None
            word = "fusion" if "fusion" in result.mutant.what else "reduce-scatter"
            assert word in refuted.case


def test_a_difference_that_no_launch_can_show_is_no_miss(surveyed: list[Result]) -> None:
    # only FP4 experts that are split over MoE TP, too, could tell
    (result,) = (r for r in surveyed if r.mutant.what == FLIPPED and r.block.module == "qwen3_moe")
    assert result.outcome == "equal"
    assert result.argument is not None
    assert result.argument.why == "no launch configuration shows a difference"


@pytest.mark.integration
def test_no_sabotage_of_any_rewritten_file_is_missed() -> None:
    found = survey(release("0.5.11"), (), PROFILE, Settings(timeout=60.0))
    assert len({result.mutant.kind for result in found}) >= 16
    assert [(r.block.module, r.mutant.kind, r.mutant.what) for r in found if r.outcome == "missed"] == []
