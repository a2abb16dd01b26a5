"""flashinfer's kernels on a CUDA device: grouped GEMM, `silu_and_mul`, `fused_add_rmsnorm`, the fused absorber.

Half precision only. What flashinfer has no kernel for (other activations, biases) is done by torch on the same device.
Kernels are compiled when they are first used, and kept where `FLASHINFER_WORKSPACE_BASE` says: `prepare` does it ahead.

Signatures and behaviour as in flashinfer-python 0.6.9.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from reference_runtime.limits import compiling

if TYPE_CHECKING:
    from reference_runtime.comm.group import Group
    from reference_runtime.kernels.base import ExpertsCall

#: Bytes of scratch space for a grouped GEMM: what its documentation asks for.
_WORKSPACE = 128 << 20
#: Rows that the fused absorber's workspace has room for.
_MAX_TOKENS = 1024


class FlashinferKernels:
    """See `kernels.base.Kernels`."""

    name = "flashinfer"

    def __init__(self) -> None:
        self._gemm: Any = None
        self._absorbers: dict[tuple[tuple[int, ...], int], Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {}

    @functools.cached_property
    def _flashinfer(self) -> Any:
        """Imported by the rank that uses it: the import looks at the GPU, and such a process cannot fork another."""
        import flashinfer
        import flashinfer.activation
        import flashinfer.norm

        return flashinfer

    @compiling()
    def experts(self, call: ExpertsCall) -> torch.Tensor:
        tokens, top_k = call.ids.shape
        out = call.x.new_zeros((tokens, top_k, call.w2.shape[1]))
        flat = call.ids.flatten()
        order = torch.argsort(flat, stable=True)
        order = order[flat[order] >= 0]  # the pairs (token, slot) of this rank's experts, expert by expert
        if order.numel() == 0:
            return out.sum(dim=1) if call.combine else out
        expert = flat[order]
        token, slot = order // top_k, order % top_k
        counts = torch.bincount(expert, minlength=call.w13.shape[0])
        scale = call.weights[token, slot].unsqueeze(-1)
        x = call.x[token] * scale if call.weight_on_input else call.x[token]
        hidden = self._grouped(x, call.w13, counts)
        if call.b13 is not None:
            hidden = hidden + call.b13[expert]
        y = self._grouped(call.activate(hidden), call.w2, counts)
        if call.b2 is not None:
            y = y + call.b2[expert]
        out[token, slot] = y if call.weight_on_input else y * scale
        return out.sum(dim=1) if call.combine else out

    def _grouped(self, x: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Rows of ``x`` times their expert's weight: ``counts`` rows for each of ``weights`` [experts, out, in]."""
        if self._gemm is None:
            workspace = torch.empty(_WORKSPACE, dtype=torch.int8, device=x.device)
            self._gemm = self._flashinfer.SegmentGEMMWrapper(workspace)
        used = counts.nonzero().flatten()  # a segment without rows is no problem size for the kernel
        ends = torch.zeros(used.numel() + 1, dtype=torch.int64, device=x.device)
        ends[1:] = counts[used].cumsum(0)
        result: torch.Tensor = self._gemm.run(
            x.contiguous(), weights, used.numel(), True, seg_indptr=ends, weight_indices=used
        )
        return result

    @compiling()
    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._flashinfer.activation.silu_and_mul(x.contiguous())
        return result

    @compiling()
    def fused_add_rmsnorm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, total = x.clone(), residual.clone()  # the kernel works in place
        self._flashinfer.norm.fused_add_rmsnorm(normed, total, weight, eps)
        return normed, total

    @compiling()
    def allreduce_add_rmsnorm(
        self, group: Group, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        processes = group.process_group
        if processes is None:  # ranks in threads: no memory to share between processes
            return self.fused_add_rmsnorm(group.all_reduce(x), residual, weight, eps)
        key = tuple(group.ranks), x.shape[-1]
        if key not in self._absorbers:
            self._absorbers[key] = _ipc_absorber(group.rank_in_group, group.world_size, x.shape[-1], processes)
        group.record("all_reduce", x)
        return self._absorbers[key](x, residual, weight, eps)


def _ipc_absorber(
    rank: int, size: int, hidden: int, processes: Any
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]:
    """flashinfer's all-reduce + residual + RMSNorm between processes, over CUDA IPC: needs no multicast."""
    from flashinfer.comm import trtllm_ar

    _, workspace = trtllm_ar.trtllm_create_ipc_workspace_for_all_reduce_fusion(
        rank, size, _MAX_TOKENS, hidden, group=processes
    )

    def absorb(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, total = torch.empty_like(x), torch.empty_like(x)
        trtllm_ar.trtllm_allreduce_fusion(
            allreduce_in=x.contiguous(),
            world_size=size,
            world_rank=rank,
            token_num=x.shape[0],
            hidden_dim=hidden,
            workspace_ptrs=workspace,
            launch_with_pdl=False,
            trigger_completion_at_end=True,
            fp32_acc=True,
            pattern_code=trtllm_ar.AllReduceFusionPattern.kARResidualRMSNorm,
            use_oneshot=True,
            allreduce_out=None,
            residual_in=residual.contiguous(),
            residual_out=total,
            norm_out=normed,
            quant_out=None,
            scale_out=None,
            rms_gamma=weight,
            rms_eps=eps,
            scale_factor=None,
            layout_code=None,
        )
        torch.cuda.synchronize()
        return normed, total

    return absorb


def prepare() -> dict[str, float]:
    """Compile and load what the kernels need, side by side: processes forked later have it.

    Uses no GPU, if `FLASHINFER_CUDA_ARCH_LIST` says for which to compile. Returns the seconds that each took.
    """
    import time

    from flashinfer import activation, norm
    from flashinfer.comm import trtllm_ar
    from flashinfer.gemm import gemm_base

    wanted: dict[str, Callable[[], Any]] = {
        "silu_and_mul": lambda: activation.get_act_and_mul_module("silu"),
        "norm": getattr(norm, "get_norm_module", lambda: None),  # absent where it is not compiled by nvcc
        "grouped gemm": gemm_base.get_gemm_sm90_module,
        "all-reduce fusion": trtllm_ar.get_trtllm_comm_module,
    }

    def build(item: tuple[str, Callable[[], Any]]) -> tuple[str, float]:
        started = time.monotonic()
        item[1]()
        return item[0], time.monotonic() - started

    with ThreadPoolExecutor(len(wanted)) as pool:
        return dict(pool.map(build, wanted.items()))
