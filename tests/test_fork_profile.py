"""A fork that renamed everything, judged with nothing but the profile that `docs/profiles.md` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runs import moe_lint
from tests.trees import COMPLETE, FORGETFUL, ROUTED, write_tree

DOCUMENT = Path(__file__).parents[1] / "docs" / "profiles.md"
RENAMED = {
    "should_skip_post_experts_all_reduce": "after_experts_is_summed",
    "is_tp_path": "over_tensor_ranks",
    "tensor_model_parallel_all_reduce": "fork_tp_sum",
    "moe_expert_parallel_all_reduce": "fork_ep_sum",
    "should_allreduce_fusion": "next_layer_sums",
    "should_fuse_mlp_allreduce_with_next_layer": "may_next_layer_sum",
    "LayerCommunicator": "BlockSeam",
    "should_use_dp_reduce_scatterv": "ranks_scatter_the_sum",
    "should_use_flashinfer_cutlass_moe_fp4_allgather": "kernel_gathers_fp4",
    "MoeA2ABackend": "Exchange",
    "get_moe_a2a_backend": "exchange",
}


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """The file that the document prints."""
    (text,) = re.findall(r"```toml\n(name = \"fork\".*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "fork.toml"
    path.write_text(text)
    return str(path)


def fork(root: Path, guard: str) -> Path:
    tree = write_tree(root, guard)
    for path in tree.rglob("*.py"):
        text = path.read_text()
        for name in sorted(RENAMED, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){name}(?!\w)", RENAMED[name], text)
        path.write_text(text)
    return tree


def run(*arguments: str) -> tuple[int, str]:
    result = moe_lint(*arguments)
    return result.exit_code, result.output


def test_without_the_profile_no_reduction_is_seen_and_the_summary_says_so(tmp_path: Path) -> None:
    status, output = run("check", str(fork(tmp_path, FORGETFUL)))
    assert (status, output.strip()) == (0, "No findings: 0 post-experts reductions in 8 files.")


def test_a_forgetful_guard_is_found_by_its_new_names(tmp_path: Path, profile: str) -> None:
    status, output = run("check", "--select", "MOE001", "--profile", profile, str(fork(tmp_path, FORGETFUL)))
    assert status == 1
    assert (
        "hand-written guard bypasses `after_experts_is_summed`: it still reduces for "
        "`ranks_scatter_the_sum()` and `kernel_gathers_fp4()`, where the helper skips" in output
    )


def test_a_complete_guard_is_called_a_copy(tmp_path: Path, profile: str) -> None:
    status, output = run("check", "--select", "MOE001", "--profile", profile, str(fork(tmp_path, COMPLETE)))
    assert status == 1
    assert "the same decision today, a copy that can drift" in output


def test_the_helper_is_right(tmp_path: Path, profile: str) -> None:
    assert run("check", "--profile", profile, str(fork(tmp_path, ROUTED)))[0] == 0


def test_a_bare_sum_below_the_renamed_absorber_is_found(tmp_path: Path, profile: str) -> None:
    tree = fork(tmp_path, "x = tensor_model_parallel_all_reduce(x)\n")
    status, output = run("check", "--select", "MOE002", "--profile", profile, str(tree))
    assert status == 1
    assert "absorber surrounds `XSparseMoeBlock`" in output
    assert "guard it with `not after_experts_is_summed(over_tensor_ranks=True, " in output


def test_the_fix_calls_the_renamed_helper_with_the_renamed_parameters(tmp_path: Path, profile: str) -> None:
    tree = fork(tmp_path, FORGETFUL)
    status, output = run("check", "--select", "MOE001", "--fix", "--profile", profile, str(tree))
    assert (status, output.splitlines()[-1]) == (0, "No findings: 1 post-experts reduction in 8 files.")
    text = (tree / "models" / "x.py").read_text()
    assert (
        "        if self.tp_size > 1 and not after_experts_is_summed(\n"
        "            over_tensor_ranks=True,\n"
        "            use_reduce_scatter=use_reduce_scatter,\n"
        "            next_layer_sums=next_layer_sums,\n"
        "        ):\n"
        "            x = fork_tp_sum(x)\n"
    ) in text
    assert "    after_experts_is_summed,\n" in text


def test_the_matrix_shows_the_renamed_reasons(tmp_path: Path, profile: str) -> None:
    status, output = run("matrix", "--profile", profile, str(fork(tmp_path, ROUTED)))
    assert status == 0
    assert all(name in output for name in ("next_layer_sums", "ranks_scatter_the_sum()", "kernel_gathers_fp4()"))
