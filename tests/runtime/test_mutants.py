"""Every sabotage of a rewritten file is noticed, or argued to be none."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.profile import load_profile
from reference_runtime.plan import Settings
from tests.mutation.driver import Result, survey
from tests.runtime.mini import MINI, PAIR, engine

PROFILE = load_profile("sglang")
QUICK = Settings(levels=("block",), world_sizes=(2,), timeout=20.0)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return survey(MINI, (), PROFILE, QUICK)


def test_there_are_many_ways_to_be_wrong(results: list[Result]) -> None:
    assert len({result.mutant.kind for result in results}) >= 16
    assert {result.mutant.site for result in results} == {0, 1}


def test_no_sabotage_goes_unnoticed(results: list[Result]) -> None:
    assert [(r.mutant.kind, r.mutant.what, r.argument) for r in results if r.outcome not in ("caught", "equal")] == []


def test_what_the_helper_cannot_tell_apart_is_argued_by_its_truth_table(results: list[Result]) -> None:
    # this engine's helper does not look at the axis, and treats its two flags alike
    equal = [(r.mutant.kind, r.argument.why) for r in results if r.outcome == "equal" and r.argument is not None]
    why = "the guards have one truth table"
    assert equal == [("axis flipped", why), ("flags swapped", why)] * 2


def test_a_mutant_is_run_only_until_it_is_refuted(results: list[Result]) -> None:
    (twice,) = [r for r in results if r.mutant.kind == "reduced twice" and r.mutant.site == 0]
    (trial,) = twice.trials
    assert trial.refuted is not None
    assert trial.refuted is trial.cases[-1]
    assert trial.refuted.after.scale == pytest.approx(2.0)


def test_a_sabotage_of_a_function_that_no_case_runs_is_not_called_caught(tmp_path: Path) -> None:
    spare = PAIR.replace(
        "\n\nclass PairAttention",
        """
    def forward_elsewhere(self, hidden_states, should_allreduce_fusion=False, use_reduce_scatter=False):
        hidden_states = self.experts(hidden_states, self.topk(hidden_states, hidden_states))
        if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
            is_tp_path=True,
            use_reduce_scatter=use_reduce_scatter,
            should_allreduce_fusion=should_allreduce_fusion,
        ):
            hidden_states = moe_tensor_model_parallel_all_reduce(hidden_states)
        return hidden_states


class PairAttention""",
    )
    tree = engine(tmp_path / "tree", {"pair": spare})
    found = survey(tree, (), PROFILE, QUICK, lambda mutant: mutant.kind == "reduced twice")
    assert [(r.function, r.outcome) for r in found] == [
        ("PairMoE.forward", "caught"),
        ("PairMoE.forward", "caught"),
        ("PairMoE.forward_elsewhere", "not run"),
    ]
