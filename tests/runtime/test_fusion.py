"""The fused all-reduce sums over the ranks that the tree's own wrapper chooses, whatever it promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from reference_runtime.launch import verify
from reference_runtime.plan import Settings
from tests.runtime.mini import PAIR, engine

#: A wrapper of the fused kernel, as an engine has one: `CHOICE` gives the group that it is set up for.
WRAPPER = """
import torch

from mini.distributed import get_attn_tp_group, get_moe_ep_group, get_moe_tp_group, get_tp_group

_flashinfer_comm = None


class FlashInferWorkspaceManager:
    def __init__(self):
        self.workspace = None

    def initialize(self, world_size, rank, hidden_dim, device_group=None, cpu_group=None):
        raise RuntimeError("needs a GPU")


_manager = FlashInferWorkspaceManager()


def flashinfer_allreduce_residual_rmsnorm(input_tensor, residual, weight, eps=1e-6, use_attn_tp_group=True):
    group = CHOICE
    if group.world_size == 1:
        return None, None
    _manager.initialize(group.world_size, group.rank_in_group, weight.shape[0], DEVICE_GROUP)
    residual_out, norm_out = torch.empty_like(residual), torch.empty_like(input_tensor)
    _flashinfer_comm.allreduce_fusion(
        input=input_tensor,
        workspace=_manager.workspace,
        pattern=_flashinfer_comm.AllReduceFusionPattern.kARResidualRMSNorm,
        residual_in=residual,
        residual_out=residual_out,
        norm_out=norm_out,
        rms_gamma=weight,
        rms_eps=eps,
    )
    return norm_out, residual_out
"""
EITHER = "get_moe_ep_group() if get_moe_ep_group().world_size > 1 else get_moe_tp_group()"
DEFERRED = """        if getattr(hidden_states, "_needs_all_reduce", False):
            hidden_states = get_tp_group().all_reduce(hidden_states)
"""
FUSED = """        if getattr(hidden_states, "_needs_all_reduce", False):
            norm = self.input_layernorm
            return flashinfer_allreduce_residual_rmsnorm(hidden_states, residual, norm.weight, use_attn_tp_group=False)
"""


def fusing(folder: Path, choice: str, device_group: str = "group.device_group") -> Path:
    """A miniature engine whose communicator has the wrapper fuse, over the group that ``choice`` gives."""
    engine(folder, {"pair": PAIR})
    text = WRAPPER.replace("CHOICE", choice).replace("DEVICE_GROUP", device_group)
    (folder / "mini" / "layers" / "flashinfer_comm_fusion.py").write_text(text)
    communicator = folder / "mini" / "layers" / "communicator.py"
    code = communicator.read_text()
    assert DEFERRED in code
    wrapper = "from mini.layers.flashinfer_comm_fusion import flashinfer_allreduce_residual_rmsnorm\n"
    communicator.write_text(
        code.replace(DEFERRED, FUSED).replace("from mini.layers.moe", wrapper + "from mini.layers.moe")
    )
    return folder


def fusions(tree: Path, level: str) -> dict[str, tuple[str, list[str]]]:
    """Case with fusion -> its verdict, and the groups that its collectives ran over."""
    (model,) = verify(tree, tree, ("*",), Settings((level,), (4,), parallel=1)).models
    assert model.problem == ""

    def groups(trace: tuple[str, ...]) -> Iterator[str]:
        for call in trace:
            yield call.partition("(")[2].partition(",")[0]

    return {
        case.case: (case.verdict.value, sorted(set(groups(case.after.trace)) - {"attn_tp"}))
        for case in model.cases
        if "fusion" in case.case and case.after is not None
    }


def test_a_wrapper_that_takes_one_of_two_groups_loses_a_sum_where_both_are_split(tmp_path: Path) -> None:
    found = fusions(fusing(tmp_path / "tree", EITHER), "layer")
    assert {case: verdict for case, (verdict, _) in found.items()} == {
        "tp4 ep1 fusion": "EQUIVALENT",
        "tp4 ep2 fusion": "BOTH_WRONG",
        "tp4 ep4 fusion": "EQUIVALENT",
    }


def test_a_wrapper_over_all_ranks_is_right_everywhere(tmp_path: Path) -> None:
    found = fusions(fusing(tmp_path / "tree", "get_tp_group()"), "layer")
    assert {verdict for verdict, _ in found.values()} == {"EQUIVALENT"}
    assert len(found) == 3


def test_a_workspace_for_some_ranks_on_the_group_of_all_is_infeasible(tmp_path: Path) -> None:
    found = fusions(fusing(tmp_path / "tree", EITHER, "None"), "layer")
    assert found["tp4 ep2 fusion"][0] == "INFEASIBLE"
    assert found["tp4 ep1 fusion"][0] == found["tp4 ep4 fusion"][0] == "EQUIVALENT"


def test_at_block_level_the_wrapper_sums_what_the_block_left(tmp_path: Path) -> None:
    # whether a communicator fuses where both are split only a layer knows
    assert fusions(fusing(tmp_path / "tree", EITHER), "block") == {
        "tp4 ep1 fusion": ("EQUIVALENT", ["moe_tp"]),
        "tp4 ep4 fusion": ("EQUIVALENT", ["moe_ep"]),
    }
