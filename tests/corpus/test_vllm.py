"""What moe-lint says about real releases of the second engine, against expectations written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.model import MatrixRow, Report
from moe_lint.profile import load_profile
from tests.corpus.releases import findings, judged, release

VLLM = load_profile("vllm")
#: Blocks that sum behind an expert layer without asking it whether its combine kernel has: all were taken out when
#: the runner of the expert layer took the sum over.
BYPASSED = {"dots1.py", "hunyuan_v1.py", "kimi_linear.py", "minimax_m2.py", "step3_text.py"}
#: Shared experts that are handed to the experts and summed twice, or by nobody, there (issues 49122, 37856, 41763).
HANDED_OVER = {
    "0.15.1": {"aria.py", "qwen3_moe.py", "qwen3_next.py"},
    "0.20.0": {"aria.py", "qwen3_moe.py"},
    "0.33.0": {"aria.py", "qwen3_moe.py", "k2_horizon.py"},
}
#: Dispatchers that combine by a kernel and say that their output is not summed (issue 41382).
DENIED = {
    "0.15.1": {"flashinfer_cutlass_prepare_finalize.py"},
    "0.20.0": {"flashinfer_nvlink_one_sided.py", "flashinfer_nvlink_two_sided.py"},
    "0.33.0": set[str](),
}
#: Blocks that call an expert kernel without an expert layer: nobody else sums.
PLAIN = {"arctic.py", "minicpm.py", "bert_with_rope.py"}


def name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def by_engine(version: str) -> set[tuple[str, str]]:
    """What is found beside the blocks that bypass the expert layer."""
    return {*(("MOE312", n) for n in HANDED_OVER[version]), *(("MOE403", n) for n in DENIED[version])}


def rows(report: Report) -> list[MatrixRow]:
    return [row for row in report.rows if row.post_experts]


def test_a_block_that_does_not_ask_the_expert_layer_is_reported_and_no_other() -> None:
    found = findings("0.15.1", "vllm")
    expected = {*(("MOE002", n) for n in BYPASSED), *by_engine("0.15.1")}
    assert {(finding.rule, name(finding.path)) for finding in found} == expected
    for finding in (one for one in found if one.rule == "MOE002"):
        assert "--data-parallel-size 2 --enable-expert-parallel" in (finding.witness or "")


def test_the_wrapper_of_the_expert_layer_is_seen_wherever_it_is_called() -> None:
    report = judged("0.15.1", "vllm")
    wrapped = {name(row.path) for row in rows(report) if row.route == "wrapper" and "/models/" in row.path}
    assert len(wrapped) == 16
    assert wrapped & BYPASSED == set()
    assert {name(row.path) for row in rows(report) if row.route in ("none", "owned")} >= PLAIN


def test_the_fix_is_what_the_other_models_do(tmp_path: Path) -> None:
    shutil.copytree(release("0.15.1", "vllm") / "vllm", tmp_path / "vllm")
    options = Options((str(tmp_path / "vllm"),), VLLM, known={})
    result = fixing.fix(options, run(options), fixing.ALLOWED["default"])
    assert result.not_proven == ()
    assert {name(one.path) for one in result.fixed} == BYPASSED
    for one in result.fixed:
        compile(one.after, one.path, "exec")
        assert "= self.experts.maybe_all_reduce_tensor_model_parallel(final_hidden_states)" in one.after
    left = {(finding.rule, name(finding.path)) for finding in result.report.findings}
    assert left == by_engine("0.15.1")


@pytest.mark.parametrize("version", ["0.20.0", "0.33.0"])
def test_where_the_runner_owns_the_sum_only_what_does_not_fit_it_is_reported(version: str) -> None:
    found = [(finding.rule, name(finding.path)) for finding in findings(version, "vllm")]
    assert len(found) == len(set(found))
    assert set(found) == by_engine(version)
    report = judged(version, "vllm")
    assert not any(problem.failed for problem in report.problems)
    final = [row for row in rows(report) if row.function == "_maybe_reduce_final_output"]
    assert [row.route in ("helper", "owned") for row in final] == [True]
