"""The fused experts: sharded by expert (EP) and by the intermediate dimension (MoE-TP)."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from reference_runtime.kernels.base import ExpertsCall
from reference_runtime.stubs import StubReached

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace
    from reference_runtime.world import RankContext

#: Arguments that change where or how fast, not what, the experts compute.
_NEUTRAL = frozenset(
    {
        "layer_id", "quant_config", "params_dtype", "prefix", "inplace", "use_presharded_weights", "top_k",
        "use_weight_loader_fused", "routing_method_type", "renormalize", "tp_size", "ep_size", "routed_scaling_factor",
        "num_experts", "hidden_size", "intermediate_size", "num_fused_shared_experts", "reduce_results", "activation",
        "apply_router_weight_on_input", "no_combine", "gemm1_alpha", "gemm1_clamp_limit", "with_bias", "is_gated",
        "swiglu_limit", "gemm1_beta", "uses_expert_location",
        "use_grouped_topk", "num_expert_group", "topk_group", "correction_bias", "custom_routing_function",
    }
)  # fmt: skip
_POSITIONAL = ("num_experts", "hidden_size", "intermediate_size", "layer_id", "top_k", "num_fused_shared_experts")


class ReferenceExperts(nn.Module):
    """Stands for the engine's fused MoE layer. The output is this rank's partial sum.

    Raises:
        StubReached: an argument, here or of a call, whose meaning is not modelled.
        ValueError: the experts or their intermediate dimension cannot be divided by the ranks.
    """

    context: RankContext
    w13_weight_bias: nn.Parameter | None
    w2_weight_bias: nn.Parameter | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        given = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        for name, value in given.items():
            if name not in _NEUTRAL and value:
                raise StubReached(f"FusedMoE({name}=…)")
        c = self.context
        shared = given.get("num_fused_shared_experts") or 0
        if shared:
            raise StubReached("FusedMoE(num_fused_shared_experts=…)")
        self.num_experts = int(given["num_experts"])
        self.hidden_size = int(given["hidden_size"])
        self.top_k = given.get("top_k")
        self.layer_id = given.get("layer_id")
        self.moe_ep_size, self.moe_ep_rank = c.topology.ep, c.moe_ep_rank
        self.moe_tp_size, self.moe_tp_rank = c.topology.moe_tp, c.moe_tp_rank
        intermediate = int(given["intermediate_size"])
        for what, size, parts in (("experts", self.num_experts, self.moe_ep_size),
                                  ("intermediate dimension", intermediate, self.moe_tp_size)):  # fmt: skip
            if size % parts:
                raise ValueError(f"{what} {size} over {parts} ranks")
        self.num_local_experts = self.num_experts // self.moe_ep_size
        self.intermediate_size_per_partition = intermediate // self.moe_tp_size
        self.reduce_results = bool(given.get("reduce_results", False))
        self.activation = str(given.get("activation") or "silu")
        self.gated = bool(given.get("is_gated", True))
        self.weight_on_input = bool(given.get("apply_router_weight_on_input", False))
        self.no_combine = bool(given.get("no_combine", False))
        self.gemm1_alpha, self.gemm1_clamp_limit = given.get("gemm1_alpha"), given.get("gemm1_clamp_limit")
        self.swiglu_limit, self.gemm1_beta = given.get("swiglu_limit"), given.get("gemm1_beta")
        self.routing_method_type = given.get("routing_method_type")
        self.should_fuse_routed_scaling_factor_in_topk = False
        self.moe_runner_config = _runner_config(c, given)
        runner = getattr(c.module("layers.moe.utils"), "get_moe_runner_backend", None)
        self.runner_backend = runner() if runner is not None else None
        self.quant_config, self.quant_method = None, _NoQuantisation()
        self._full = (intermediate, 2 if self.gated else 1)
        self._parameters_of(c, bool(given.get("with_bias")))
        self._made = True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_made" in self.__dict__ and self.context.defines("layers.moe.fused_moe_triton.layer", name):
                raise StubReached(f"FusedMoE.{name}") from None
            raise

    def _parameters_of(self, c: RankContext, bias: bool) -> None:
        local, part, halves = self.num_local_experts, self.intermediate_size_per_partition, self._full[1]

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=c.dtype, device=c.device), requires_grad=False)

        self.w13_weight = parameter(local, halves * part, self.hidden_size)
        self.w2_weight = parameter(local, self.hidden_size, part)
        self.register_parameter("w13_weight_bias", parameter(local, halves * part) if bias else None)
        self.register_parameter("w2_weight_bias", parameter(local, self.hidden_size) if bias else None)

    def fill(self, full: Callable[[str, tuple[int, ...]], torch.Tensor]) -> None:
        """Take this rank's slices of the full weights; ``full(name, shape)`` gives them. In place."""
        local, part = self.num_local_experts, self.intermediate_size_per_partition
        experts = slice(self.moe_ep_rank * local, (self.moe_ep_rank + 1) * local)
        mine = slice(self.moe_tp_rank * part, (self.moe_tp_rank + 1) * part)
        intermediate, halves = self._full
        count, hidden = self.num_experts, self.hidden_size
        w13 = full("w13_weight", (count, halves, intermediate, hidden))
        self.w13_weight.data.copy_(w13[experts, :, mine].flatten(1, 2))
        self.w2_weight.data.copy_(full("w2_weight", (count, hidden, intermediate))[experts, :, mine])
        if self.w13_weight_bias is not None and self.w2_weight_bias is not None:
            b13 = full("w13_weight_bias", (count, halves, intermediate))
            self.w13_weight_bias.data.copy_(b13[experts, :, mine].flatten(1, 2))
            # added once per expert, not once per slice of its intermediate dimension
            b2 = full("w2_weight_bias", (count, hidden))[experts]
            self.w2_weight_bias.data.copy_(b2 if self.moe_tp_rank == 0 else torch.zeros_like(b2))

    def forward(self, hidden_states: torch.Tensor, topk_output: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[rows, hidden] and the choice of experts for these rows, [rows, top_k] each -> [rows, hidden].

        With FP4 all-gather the rows are this rank's own and the result is their whole sum.
        """
        if args or any(value is not None for value in kwargs.values()):
            raise StubReached(f"FusedMoE.forward({', '.join(kwargs) or 'more arguments'})")
        c = self.context
        if not c.moe_a2a_is_none():
            raise StubReached("FusedMoE with an all-to-all backend")
        weights, ids = topk_output.topk_weights, topk_output.topk_ids
        fp4 = c.predicate("should_use_flashinfer_cutlass_moe_fp4_allgather")
        sizes = c.global_num_tokens
        if fp4:  # the dispatcher's all-gather; quantisation is the identity here
            gathered = c.group("tp").all_gatherv([weights, ids, hidden_states], sizes=sizes)
            weights, ids, hidden_states = gathered
        first = self.moe_ep_rank * self.num_local_experts
        local = ids.long() - first
        local = torch.where((local >= 0) & (local < self.num_local_experts), local, torch.full_like(local, -1))
        out = c.kernels.experts(
            ExpertsCall(
                x=hidden_states, ids=local, weights=weights.to(hidden_states.dtype), w13=self.w13_weight,
                w2=self.w2_weight, b13=self.w13_weight_bias, b2=self.w2_weight_bias, activate=self._activate,
                combine=not self.no_combine, weight_on_input=self.weight_on_input,
            )
        )  # fmt: skip
        if fp4:  # the combine: each rank gets the sum of its own tokens
            out = c.group("tp").reduce_scatterv(out, sizes=sizes)
        if self.reduce_results and (self.moe_tp_size > 1 or self.moe_ep_size > 1):
            out = c.group("tp").all_reduce(out)
        return out

    forward_impl = forward

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return self._function()(x)
        limit = self.gemm1_clamp_limit if self.swiglu_limit is None else self.swiglu_limit
        if self.activation == "silu" and self.gemm1_alpha is None and limit is None:
            return self.context.kernels.silu_and_mul(x)
        half = x.shape[-1] // 2
        gate, up = x[..., :half], x[..., half:]
        if limit is not None:
            limit = float(limit)
            gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
        if self.gemm1_alpha is not None:  # the form of gpt-oss
            beta = 1.0 if self.gemm1_beta is None else float(self.gemm1_beta)
            return gate * torch.sigmoid(gate * float(self.gemm1_alpha)) * (up + beta)
        return self._function()(gate) * up

    def _function(self) -> Callable[[torch.Tensor], torch.Tensor]:
        function = _ACTIVATIONS.get(self.activation)
        if function is None:
            raise StubReached(f"FusedMoE(activation={self.activation!r})")
        return function


def _runner_config(context: RankContext, given: dict[str, Any]) -> Any:
    """The tree's record of what its kernels are told; None where it has none."""
    made = context.module("layers.moe.moe_runner.base") if context.has("layers.moe.moe_runner.base") else None
    kind = getattr(made, "MoeRunnerConfig", None)
    if not dataclasses.is_dataclass(kind):
        return None
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if name in names})  # type: ignore[operator]


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu2": _relu2}


class _NoQuantisation:
    """The quantisation method of layers without one."""


def _experts_class(space: ModuleSpace) -> type[ReferenceExperts]:
    context: RankContext = space.context
    return context.shared("FusedMoE", lambda: type("FusedMoE", (ReferenceExperts,), {"context": context}))


def install(space: ModuleSpace, module: types.ModuleType) -> None:
    """Fill a module that defines the engine's MoE layers."""
    experts = _experts_class(space)
    module.__dict__["FusedMoE"] = experts
    module.__dict__["get_moe_impl_class"] = lambda quant_config=None, *args, **kwargs: experts
    for name in ("EPMoE", "DeepEPMoE", "FlashInferFusedMoE", "FlashInferFP4MoE"):
        module.__dict__[name] = type(name, (experts,), {})
