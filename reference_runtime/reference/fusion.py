"""The fused all-reduce + residual add + RMSNorm: the absorber behind `should_allreduce_fusion`.

The tree's own wrapper runs: over which ranks it has the kernel sum is part of what is tested. A wrapper that always
took the EP group where there was one lost the other sum with `--tp 4 --ep 2` (sglang #32511).
"""

from __future__ import annotations

import inspect
import types
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import torch

from reference_runtime.comm.base import Infeasible
from reference_runtime.comm.group import Group
from reference_runtime.stubs import Stub

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace
    from reference_runtime.world import RankContext

#: The tree's module that wraps the kernel, and its function that has it run.
MODULE = "layers.flashinfer_comm_fusion"
WRAPPER = "flashinfer_allreduce_residual_rmsnorm"
_GROUPS = ("tp", "attn_tp", "moe_ep", "moe_tp")


def allow(space: ModuleSpace, module: types.ModuleType) -> None:
    """Let the tree's communicator fuse where its own conditions allow it, as on a GPU that has the kernel."""
    for name in ("_is_sm90_supported", "_is_sm100_supported", "_is_flashinfer_available"):
        if name in module.__dict__:
            module.__dict__[name] = True


def engage(space: ModuleSpace, module: types.ModuleType) -> None:
    """Give the tree's wrapper of the fused kernel a kernel, and a workspace that costs nothing."""
    context: RankContext = space.context
    names = module.__dict__
    manager: Any = names.get("FlashInferWorkspaceManager")
    parameters = inspect.signature(manager.initialize) if manager is not None else inspect.Signature()
    if not {"world_size", "rank"} <= parameters.parameters.keys():
        names[WRAPPER] = Stub(f"{module.__name__}.{WRAPPER}")  # a workspace of another kind
        return
    names.update(
        _flashinfer_allreduce_unavailable=False,
        is_flashinfer_available=lambda: True,
        uses_cutedsl_ar_fusion=lambda: False,
        resolve_flashinfer_allreduce_fusion_backend=lambda *_, **__: "trtllm",
        _sync_allreduce_unavailable_across_tp=lambda: None,
        _flashinfer_comm=_Comm(context),
        dist=types.SimpleNamespace(get_rank=lambda: context.transport.rank),
    )

    def initialize(self: Any, *values: Any, **named: Any) -> None:
        given = parameters.bind(self, *values, **named).arguments
        group = _group_of(context, given.get("device_group"))
        if group.world_size != given["world_size"]:
            raise Infeasible(f"the fused all-reduce is set up for {given['world_size']} of {group.world_size} ranks")
        self.workspace = self.workspace_tensor = group
        self.world_size, self.rank, self.backend = given["world_size"], given["rank"], "trtllm"
        self.group = given.get("device_group"), given.get("cpu_group")
        self.initialized = True

    manager.initialize = initialize
    manager.is_buffer_size_sufficient = lambda *_, **__: True


def _group_of(context: RankContext, process_group: Any) -> Group:
    """The group with a process group as the wrapper hands it on; None is the default one, of all ranks."""
    names = _GROUPS if process_group is not None else ()
    groups = map(context.group, names)
    return next((group for group in groups if group.device_group is process_group), context.group("tp"))


class _Pattern(Enum):
    kAllReduce = auto()
    kARResidualRMSNorm = auto()


class _Comm:
    """`flashinfer.comm`, as far as wrappers use it. A workspace is the group that it was made for.

    Its functions write into the tensors that the wrapper gives for the results.
    """

    AllReduceFusionPattern = _Pattern

    def __init__(self, context: RankContext) -> None:
        self._context = context

    def allreduce_fusion(self, input: torch.Tensor, workspace: Group, pattern: _Pattern, **given: Any) -> None:
        if pattern is _Pattern.kAllReduce:
            given["output"].copy_(workspace.all_reduce(input))
            return
        normed, total = self._context.kernels.allreduce_add_rmsnorm(
            workspace, input, given["residual_in"], given["rms_gamma"], given["rms_eps"]
        )
        given["norm_out"].copy_(normed)
        given["residual_out"].copy_(total)

    def trtllm_allreduce_fusion(
        self, allreduce_in: torch.Tensor, workspace_ptrs: Group, pattern_code: _Pattern, **given: Any
    ) -> None:
        self.allreduce_fusion(allreduce_in, workspace_ptrs, pattern_code, **given)
