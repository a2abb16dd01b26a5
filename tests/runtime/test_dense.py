"""The dense oracle: what a block must compute, by plain torch, and what is said where there is no such form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.report import json_report
from reference_runtime.verdicts import ModelReport, OracleNote, RunReport
from tests.runtime.mini import PAIR, changed, engine

INIT = "        self.gate = ReplicatedLinear(config.hidden_size, config.num_experts)\n"
LOGITS = "        router_logits, _ ="
LAYER = "            layer_id=layer_id,\n"
MODELS = {
    "plain": PAIR,
    "halves": changed("        return hidden_states\n", "        return hidden_states / 2\n", 1),
    "scales_the_routed_part": changed(INIT, INIT + "        self.routed_scaling_factor = 1.5\n").replace(
        "        return hidden_states\n", "        return hidden_states * self.routed_scaling_factor\n", 1
    ),
    "has_another_weight": changed(
        INIT, INIT + "        self.mystery = ReplicatedLinear(config.hidden_size, config.hidden_size)\n"
    ).replace(LOGITS, "        hidden_states, _ = self.mystery(hidden_states)\n" + LOGITS),
    "clamps": changed(LAYER, f"{LAYER}            gemm1_clamp_limit=7.0,\n"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    tree = engine(tmp_path_factory.mktemp("trees") / "tree", MODELS)
    return verify(tree, tree, ("*",), Settings(world_sizes=(2,), parallel=2))


def model(report: RunReport, name: str) -> ModelReport:
    (found,) = [m for m in report.models if m.model == f"{name}.PairMoE"]
    return found


def note(report: RunReport, name: str, level: str = "block") -> OracleNote:
    found = model(report, name).oracle(level)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["plain", "scales_the_routed_part"])
def test_one_rank_agrees_with_the_dense_form_of_its_parameters(report: RunReport, name: str) -> None:
    found = note(report, name)
    assert found.dense
    assert found.error is not None
    assert found.error < 1e-12
    assert str(found).startswith("dense, error ")


def test_a_block_that_is_wrong_on_one_rank_is_told_and_not_called_dense(report: RunReport) -> None:
    found = note(report, "halves")
    assert not found.dense
    assert found.error == pytest.approx(0.5)
    assert str(found) == "one rank of BEFORE (the dense form differs by 0.5)"


@pytest.mark.parametrize(
    ("name", "level", "reason"),
    [
        ("has_another_weight", "block", "parameter mystery.weight"),
        ("clamps", "block", "its experts' activation has a limit"),
        ("plain", "layer", "layers have norms and residuals"),
    ],
)
def test_where_there_is_no_dense_form_the_reason_is_told(report: RunReport, name: str, level: str, reason: str) -> None:
    assert str(note(report, name, level)) == f"one rank of BEFORE (no dense form: {reason})"


def test_the_oracle_of_each_level_is_in_the_json(report: RunReport) -> None:
    document = json.loads(json_report.render(report))
    (plain,) = [m for m in document["models"] if m["model"] == "plain.PairMoE"]
    assert plain["oracles"]["block"]["dense"] is True
    assert plain["oracles"]["block"]["error"] < 1e-12
    assert plain["oracles"]["layer"] == {
        "dense": False, "error": None, "text": "one rank of BEFORE (no dense form: layers have norms and residuals)"
    }  # fmt: skip


def test_a_block_that_cannot_run_has_no_oracle(tmp_path: Path) -> None:
    text = changed("        router_logits, _ =", "        raise ValueError('no')\n        router_logits, _ =")
    tree = engine(tmp_path / "tree", {"pair": text})
    (found,) = verify(tree, tree, ("*",), Settings(("block",), (2,))).models
    assert found.oracles == ()
