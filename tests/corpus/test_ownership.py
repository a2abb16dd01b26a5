"""Who owns a sum, on real releases: nobody is accused as they are, everybody once the reductions are taken out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_lint.analysis import analyse
from moe_lint.profile import load_profile
from moe_lint.rules import Context, all_rules
from tests.corpus.releases import judged, release

RULE = next(rule for rule in all_rules() if rule.code == "MOE304")
#: Models whose blocks build their experts or shared experts with `reduce_results=False`, or (the last line) tell their
#: experts nothing: their class does not reduce by default.
SGLANG = {
    "afmoe", "bailing_moe_linear", "deepseek", "ernie4", "ernie45_moe_vl", "exaone_moe", "glm4_moe", "hunyuan",
    "hunyuan_v3", "kimi_linear", "llama4", "nemotron_h", "sarvam_moe", "xverse_moe",
    "longcat_flash", "mixtral", "qwen3_moe", "step3_vl",
}  # fmt: skip
VLLM = {
    "afmoe", "bailing_moe", "deepseek_v2", "dots1", "ernie45_moe", "exaone_moe", "glm4_moe", "hunyuan_v1",
    "kimi_linear", "lfm2_moe", "llama4", "minimax_m2", "nemotron_h", "qwen2_moe", "qwen3_moe",
}  # fmt: skip
_REDUCTION = re.compile(
    r"(?:self\.experts\.maybe_all_reduce_tensor_model_parallel|(?:moe_)?(?:tensor_model|expert)_parallel_all_reduce)\("
)


def accused(version: str, package: str = "sglang") -> set[str]:
    """The models that MOE304 reports."""
    return {Path(finding.path).stem for finding in judged(version, package).findings if finding.rule == RULE.code}


def accused_without_reductions(version: str, package: str, models: set[str]) -> set[str]:
    """The models that MOE304 reports when every reduction in some of them does nothing."""
    root = release(version, package) / package
    paths = sorted(str(path) for path in root.rglob("*.py"))
    changed = {
        path: _REDUCTION.sub("(", Path(path).read_text())
        for path in paths
        if "/models/" in path and Path(path).stem in models
    }
    tree = analyse(str(root), paths, load_profile(package), changed)
    return {Path(finding.path).stem for finding in RULE.check(Context(tree.index, tree.policy, tree.sites))}


@pytest.mark.parametrize(
    ("version", "package", "models"),
    [
        ("0.5.11", "sglang", SGLANG),
        # its communicator comes from a function then: whether that takes sums by contract is not told
        ("0.5.20", "sglang", SGLANG - {"nemotron_h"}),
        # theirs gather what was split before, by a function of which it is not told whether it sums
        ("0.15.1", "vllm", VLLM - {"deepseek_v2", "llama4", "qwen3_moe"}),
    ],
)
def test_experts_told_not_to_reduce_are_reported_where_the_reductions_are_taken_out(
    version: str, package: str, models: set[str]
) -> None:
    assert accused(version, package) == set()
    assert accused_without_reductions(version, package, models) == models


@pytest.mark.parametrize("version", ["0.5.21", "0.5.23"])
def test_behind_a_boundary_that_takes_sums_by_contract_no_block_is_accused(version: str) -> None:
    assert accused(version) == set()
