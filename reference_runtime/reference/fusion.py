"""The fused all-reduce + residual add + RMSNorm: the absorber behind `should_allreduce_fusion`."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace
    from reference_runtime.world import RankContext


def allow(space: ModuleSpace, module: types.ModuleType) -> None:
    """Let the tree's communicator fuse where its own conditions allow it, as on a GPU that has the kernel."""
    for name in ("_is_sm90_supported", "_is_sm100_supported", "_is_flashinfer_available"):
        if name in module.__dict__:
            module.__dict__[name] = True


def install(space: ModuleSpace, module: types.ModuleType) -> None:
    """Fill the module that wraps the fused kernel."""
    context: RankContext = space.context

    def fused(
        input_tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float = 1e-6,
        *_: Any,
        use_attn_tp_group: bool = False,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        group = context.group("attn_tp" if use_attn_tp_group else "tp")
        return context.kernels.allreduce_add_rmsnorm(group, input_tensor, residual, weight, eps)

    module.__dict__.update(
        flashinfer_allreduce_residual_rmsnorm=fused,
        uses_cutedsl_ar_fusion=lambda: False,
        is_flashinfer_allreduce_unavailable=lambda: False,
        ensure_workspace_initialized=lambda *_, **__: True,
        cleanup_flashinfer_workspace=lambda *_, **__: None,
    )
