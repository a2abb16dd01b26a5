"""The tree's fused kernels, computed with torch. Bound by the kernel's name, in whatever module a tree keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from reference_runtime.stubs import StubReached


def _gate_add(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """Add the shared experts' output, gated per token, to the routed experts' output, in place. [tokens, hidden]."""
    gate = torch.sigmoid((hidden_states * gate_weight.reshape(-1)).sum(-1, keepdim=True))
    final_hidden_states.add_(gate * shared_output)


def _zero_experts(
    expert_indices: torch.Tensor,
    expert_scales: torch.Tensor,
    num_experts: int,
    zero_expert_type: str,
    hidden_states: torch.Tensor,
) -> torch.Tensor:
    """What experts beyond ``num_experts`` give: the token itself, scaled. Their scales are zeroed in place."""
    if zero_expert_type != "identity":
        raise StubReached(f"zero experts of type {zero_expert_type!r}")
    zero = expert_indices >= num_experts
    scale = torch.where(zero, expert_scales, torch.zeros_like(expert_scales)).sum(-1, keepdim=True)
    expert_indices[zero] = 0
    expert_scales[zero] = 0.0
    return scale.to(hidden_states.dtype) * hidden_states


def _router(
    moe_softcapping: float,
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    correction_bias: torch.Tensor | None = None,
    enable_deterministic_inference: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, ids) [tokens, topk] of a softmax over capped logits; ``gating_output`` is the router's weight."""
    if renormalize or correction_bias is not None:
        raise StubReached("fused_moe_router_shim(renormalize or correction_bias)")
    logits = hidden_states.float() @ gating_output.float().T
    if moe_softcapping:
        logits = torch.tanh(logits / moe_softcapping) * moe_softcapping
    weights, ids = torch.topk(torch.softmax(logits, dim=-1), topk, dim=-1)
    return weights, ids.to(torch.int32)


def _silu_clamp(input: torch.Tensor, output: torch.Tensor, swiglu_limit: float) -> None:
    """SiLU of the first half times the second, both clamped before: [tokens, 2 n] into [tokens, n]."""
    gate, up = input.chunk(2, dim=-1)
    output.copy_(F.silu(gate.clamp(max=swiglu_limit)) * up.clamp(min=-swiglu_limit, max=swiglu_limit))


def _rmsnorm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, autotune: bool = False, inplace: bool = False
) -> torch.Tensor:
    """The root-mean-square norm of [tokens, hidden], in float32."""
    wide = x.float()
    normed = (wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
    return x.copy_(normed) if inplace else normed


def _two_norms(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
    eps: float,
    autotune: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of the sum, the sum) of a residual and the norm of [tokens, hidden]."""
    middle = residual + _rmsnorm(x, weight1, eps)
    return _rmsnorm(middle, weight2, eps), middle


def _add_shared(
    experts: Any, routed: torch.Tensor, shared: torch.Tensor | None, routed_scaling_factor: float
) -> torch.Tensor:
    """Add the shared experts' output to the routed experts', in place. These experts have scaled theirs already."""
    if shared is not None:
        routed += shared
    return routed


def copy_rows(dst: torch.Tensor, src: torch.Tensor, dim: int, offset: Any, sz: Any, offset_src: bool) -> None:
    """`sz` rows from (``offset_src``) or to row `offset`."""
    if dim != 0:
        raise ValueError("rows only")
    start, rows = int(offset), int(sz)
    rows = min(rows, src.shape[0], dst.shape[0])
    if offset_src:
        dst[:rows] = src[start : start + rows]
    else:
        dst[start : start + rows] = src[:rows]


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "fused_gate_sigmoid_mul_add": _gate_add,
    "zero_experts_compute_triton": _zero_experts,
    "fused_moe_router_shim": _router,
    "memcpy_triton": copy_rows,
    "fused_rmsnorm": _rmsnorm,
    "fused_dual_residual_rmsnorm": _two_norms,
    "maybe_fuse_routed_scale_and_shared_add": _add_shared,
    "silu_and_mul_clamp": _silu_clamp,
}


def _mm_into(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    return (a.to(out_dtype) @ b.to(out_dtype)).to(out_dtype)


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else _as_it_is


def register() -> None:
    """Give torch on the CPU the operators that it has on a GPU only: a product with a type of its own.

    And leave functions as they are that would be compiled: what they compute is the same, and the compiler's import
    takes longer than a run.
    """
    torch.library.impl("aten::mm.dtype", "CPU", _mm_into)
    setattr(torch, "compile", _as_it_is)  # noqa: B010  (each has a type of its own)
    setattr(torch.compiler, "disable", _as_it_is)  # noqa: B010
