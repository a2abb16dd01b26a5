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
#: Blocks that call an expert kernel without an expert layer: nobody else sums.
PLAIN = {"arctic.py", "minicpm.py", "bert_with_rope.py"}


def name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def rows(report: Report) -> list[MatrixRow]:
    return [row for row in report.rows if row.post_experts]


def test_a_block_that_does_not_ask_the_expert_layer_is_reported_and_no_other() -> None:
    found = findings("0.15.1", "vllm")
    assert {(finding.rule, name(finding.path)) for finding in found} == {("MOE002", n) for n in BYPASSED}
    for finding in found:
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
    assert result.report.findings == ()


@pytest.mark.parametrize("version", ["0.20.0", "0.33.0"])
def test_where_the_runner_owns_the_sum_nothing_is_reported(version: str) -> None:
    assert [(f.rule, f.path, f.span.line) for f in findings(version, "vllm")] == []
    report = judged(version, "vllm")
    assert not any(problem.failed for problem in report.problems)
    final = [row for row in rows(report) if row.function == "_maybe_reduce_final_output"]
    assert [row.route in ("helper", "owned") for row in final] == [True]
