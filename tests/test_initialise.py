"""The helper that `init` gives a tree: what its guards name, and on which axis."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.initialise import helper_source, plan_init
from moe_lint.profile import load_profile
from moe_lint.rules._cases import UTILS, experts, model

PAIR = """
if self.ep_size > 1 and not should_allreduce_fusion:
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1 and not should_allreduce_fusion and not should_use_flashinfer_cutlass_moe_fp4_allgather():
    x = moe_tensor_model_parallel_all_reduce(x)
"""
COMBINE = """\
from engine.distributed import get_tp_group
from engine.layers.moe.utils import should_use_flashinfer_cutlass_moe_fp4_allgather


class Dispatcher:
    def combine(self, x):
        if should_use_flashinfer_cutlass_moe_fp4_allgather():
            get_tp_group().reduce_scatterv(x)
        return x
"""


@pytest.mark.parametrize(
    ("dispatcher", "condition"),
    [
        ("", "is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()"),
        (COMBINE, "should_use_flashinfer_cutlass_moe_fp4_allgather()"),
        (COMBINE.replace("combine", "dispatch"), "is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()"),
    ],
    ids=["named-on-one-axis", "summed-in-the-combine", "summed-elsewhere"],
)
def test_a_reason_of_one_axis_counts_for_both_where_the_combine_sums(
    tmp_path: Path, dispatcher: str, condition: str
) -> None:
    files = {
        "layers/moe/utils.py": UTILS[: UTILS.index("def should_skip_post_experts_all_reduce")],
        "layers/moe/dispatcher.py": dispatcher,
        "models/pretend.py": model(experts(PAIR)),
    }
    for name, text in files.items():
        path = tmp_path / "engine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    profile = load_profile("sglang")
    plan = plan_init(str(tmp_path / "engine"), profile)
    assert plan is not None
    lines = [line.strip() for line in helper_source(plan.helper, profile).splitlines()]
    assert f"if {condition}:" in lines
