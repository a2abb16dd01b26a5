"""Ranks as processes give the verdicts of ranks as threads, also where the ranks do not meet."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.scenarios import block_cases
from reference_runtime.verdicts import RunReport, Status, Verdict
from tests.runtime.mini import PAIR, engine
from tests.runtime.test_verify import MODELS

NAMES = ("same", "flag_dropped", "flag_added", "another_shape")


def told(report: RunReport) -> dict[tuple[str, str, str], tuple[object, ...]]:
    return {
        (model.model, case.level, case.case): (case.verdict, case.before.trace, case.after.trace, case.detail)
        for model in report.models
        for case in model.cases
    }


def test_gloo_agrees_with_threads_in_every_case(tmp_path: Path) -> None:
    before = engine(tmp_path / "before", {name: MODELS[name][0] for name in NAMES})
    after = engine(tmp_path / "after", {name: MODELS[name][1] for name in NAMES})
    reports = [
        verify(before, after, ("*",), Settings(world_sizes=(2,), backend=backend, parallel=2))
        for backend in ("threads", "gloo")
    ]
    assert told(reports[0]) == told(reports[1])
    assert len(told(reports[0])) == 4 * 20


def test_a_rank_that_leaves_is_an_outcome_of_its_case_alone(tmp_path: Path) -> None:
    text = PAIR.replace(
        "        router_logits, _ = self.gate(hidden_states)\n",
        "        if use_reduce_scatter:\n            import os\n            os._exit(0)\n"
        "        router_logits, _ = self.gate(hidden_states)\n",
    )
    before = engine(tmp_path / "before", {"leaves": PAIR})
    after = engine(tmp_path / "after", {"leaves": text})
    (model,) = verify(before, after, (), Settings(("block",), (2,), backend="gloo")).models
    wrong = {case.case: case.after for case in model.cases if case.after.status is not Status.RIGHT}
    assert set(wrong) == {"tp2 ep1 dp2 max-len reduce-scatter", "tp2 ep2 dp2 max-len reduce-scatter"}
    assert {outcome.detail for outcome in wrong.values()} == {"Ended: the rank's process ended"}
    assert model.problem == ""


def test_eight_ranks_are_laid_out_in_every_way_and_the_scale_is_the_expert_parallel_size(tmp_path: Path) -> None:
    before = engine(tmp_path / "before", {"flag_added": MODELS["flag_added"][0]})
    after = engine(tmp_path / "after", {"flag_added": MODELS["flag_added"][1]})
    (model,) = verify(before, after, (), Settings(("block",), (8,))).models
    layouts = {(case.topology.ep, case.topology.dp) for case in block_cases((8,), communicator=True)}
    assert layouts == {(ep, dp) for ep in (1, 2, 4, 8) for dp in (1, 2, 4, 8)}
    corrected = {case.case: case.before.scale for case in model.cases if case.verdict is Verdict.CORRECTED}
    expected = {f"tp8 ep{ep} dp{dp} max-len reduce-scatter": float(ep) for ep in (2, 4, 8) for dp in (2, 4, 8)}
    assert corrected == {name: pytest.approx(scale) for name, scale in expected.items()}
