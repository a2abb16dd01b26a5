"""Plain torch: any device, any dtype, exact order of operations. The default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from reference_runtime.comm.group import Group
    from reference_runtime.kernels.base import ExpertsCall


def _each(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Each row through its own matrix: [rows, n] and [rows, m, n] to [rows, m]."""
    y = torch.bmm(weight, x.unsqueeze(-1)).squeeze(-1)
    return y if bias is None else y + bias


class ReferenceKernels:
    """See `kernels.base.Kernels`."""

    name = "reference"

    def experts(self, call: ExpertsCall) -> torch.Tensor:
        tokens, top_k = call.ids.shape
        out = call.x.new_zeros((tokens, top_k, call.w2.shape[1]))
        # the few tokens of a run: a product for each of their experts costs less than a step for each expert
        token, slot = (call.ids >= 0).nonzero(as_tuple=True)
        expert = call.ids[token, slot]
        scale = call.weights[token, slot].unsqueeze(-1)
        x = call.x[token] * scale if call.weight_on_input else call.x[token]
        hidden = call.activate(_each(x, call.w13[expert], None if call.b13 is None else call.b13[expert]))
        y = _each(hidden, call.w2[expert], None if call.b2 is None else call.b2[expert])
        out[token, slot] = y if call.weight_on_input else y * scale
        return out.sum(dim=1) if call.combine else out

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return F.silu(x[..., :half]) * x[..., half:]

    def fused_add_rmsnorm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + residual
        variance = total.pow(2).mean(dim=-1, keepdim=True)
        return total * torch.rsqrt(variance + eps) * weight, total

    def allreduce_add_rmsnorm(
        self, group: Group, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fused_add_rmsnorm(group.all_reduce(x), residual, weight, eps)
