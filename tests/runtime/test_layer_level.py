"""Two decoder layers with the tree's own communicator: bugs between the layer and its block."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from reference_runtime.verdicts import RunReport, Verdict
from tests.runtime.mini import PAIR, changed, engine

MODELS = {
    "same": (PAIR, PAIR + "\n"),
    "never_asks": (PAIR, changed("= self.layer_communicator.should_use_reduce_scatter(forward_batch)", "= False")),
    "claims_a_fusion": (
        PAIR,
        changed("mlp(hidden_states, forward_batch, should", "mlp(hidden_states, forward_batch, True or should"),
    ),
    "forgets_the_mark": (PAIR, changed("hidden_states._needs_all_reduce = True", "pass")),
    "swaps_the_flags": (
        PAIR,
        changed(
            "self.mlp(hidden_states, forward_batch, should_allreduce_fusion, use_reduce_scatter)",
            "self.mlp(hidden_states, forward_batch, use_reduce_scatter, should_allreduce_fusion)",
        ),
    ),
    "attention_reduces": (PAIR, changed("config.hidden_size, reduce_results=False)", "config.hidden_size)")),
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    folder = tmp_path_factory.mktemp("trees")
    before = engine(folder / "before", {name: text for name, (text, _) in MODELS.items()})
    after = engine(folder / "after", {name: text for name, (_, text) in MODELS.items()})
    return verify(before, after, ("*",), Settings(("layer",), (2,), parallel=2))


def not_equivalent(report: RunReport, name: str) -> dict[str, Verdict]:
    (found,) = [m for m in report.models if m.model == f"{name}.PairMoE"]
    assert found.problem == ""
    assert len(found.cases) == 9
    return {case.case: case.verdict for case in found.cases if case.verdict is not Verdict.EQUIVALENT}


def test_the_same_layer_is_equivalent_in_every_case(report: RunReport) -> None:
    assert not_equivalent(report, "same") == {}


def test_a_decoder_that_never_asks_for_the_reduce_scatter_reduces_twice(report: RunReport) -> None:
    assert not_equivalent(report, "never_asks") == {
        "tp2 ep1 dp2 max-len": Verdict.BROKEN,
        "tp2 ep2 dp2 max-len": Verdict.BROKEN,
    }


def test_a_fusion_that_nobody_does_loses_the_sum(report: RunReport) -> None:
    broken = not_equivalent(report, "claims_a_fusion")
    assert set(broken.values()) == {Verdict.BROKEN}
    assert {"tp2 ep1", "tp2 ep2", "tp2 ep1 dp2 sum-len"} <= broken.keys()


def test_a_deferred_sum_without_its_mark_is_lost(report: RunReport) -> None:
    assert not_equivalent(report, "forgets_the_mark") == {
        "tp2 ep1 fusion": Verdict.BROKEN,
        "tp2 ep2 fusion": Verdict.BROKEN,
    }


def test_flags_that_mean_the_same_to_the_helper_may_be_swapped(report: RunReport) -> None:
    assert not_equivalent(report, "swaps_the_flags") == {}


def test_an_attention_that_sums_itself_is_run_as_one_that_does(report: RunReport) -> None:
    # its communicator sums again: two owners
    broken = not_equivalent(report, "attention_reduces")
    assert set(broken.values()) == {Verdict.BROKEN}
    assert {"tp2 ep1", "tp2 ep2"} <= broken.keys()
