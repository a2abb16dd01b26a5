"""What a block must compute, from its own parameters by plain torch in float64: no line of the tree's code runs.

    y(x) = scale * sum over the top k experts e of weight_e(x) * down_e(silu(gate_e(x)) * up_e(x)) + shared(x)

The parameters and the routing's settings are those that one rank of the block holds. A block with anything else in it
has no such form here, and the reason says what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reference_runtime.reference.moe import ReferenceExperts


class NoDenseForm(Exception):
    """The block has a part whose meaning is not known here. Says which."""


@dataclass(frozen=True, slots=True)
class Dense:
    """The dense form of one block.

    Attributes:
        gate: [experts, hidden]; with `gate_bias` [experts] or none.
        bias: [experts], added to the scores for the choice alone; or none.
        sigmoid: scores are sigmoids of the logits, not their softmax.
        w13, w2: [experts, 2 * intermediate, hidden] and [experts, hidden, intermediate].
        shared: (gate and up, down) of the shared expert, or none; ``shared_gate`` [1, hidden] scales it per token.
        scale: of the routed part, if the block applies it; whether it does is not written in its parameters.
        coarsest: the type of least precision among its parameters: a gate may have one of its own.
    """

    gate: torch.Tensor
    gate_bias: torch.Tensor | None
    bias: torch.Tensor | None
    sigmoid: bool
    top_k: int
    renormalise: bool
    w13: torch.Tensor
    w2: torch.Tensor
    shared: tuple[torch.Tensor, torch.Tensor] | None
    shared_gate: torch.Tensor | None
    scale: float
    coarsest: torch.dtype

    def __call__(self, x: torch.Tensor, scaled: bool) -> torch.Tensor:
        """The block's output for tokens [rows, hidden], in float64."""
        x = x.double().cpu()
        logits = F.linear(x, self.gate, self.gate_bias)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(dim=-1)
        chosen = (scores if self.bias is None else scores + self.bias).topk(self.top_k, dim=-1).indices
        weights = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
        if self.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        each = torch.stack([_mlp(x, w13, w2) for w13, w2 in zip(self.w13, self.w2, strict=True)], dim=1)
        y = (weights.unsqueeze(-1) * each).sum(dim=1) * (self.scale if scaled else 1.0)
        if self.shared is not None:
            shared = _mlp(x, *self.shared)
            y = y + (shared if self.shared_gate is None else torch.sigmoid(F.linear(x, self.shared_gate)) * shared)
        return y

    def error(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> float:
        """The largest relative error of some outputs, with the scale where the block fits it better."""
        return min(
            max(
                float((y.double().cpu() - (want := self(x, scaled))).norm() / want.norm())
                for x, y in zip(inputs, outputs, strict=True)
            )
            for scaled in (False, True)
        )


def _mlp(x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    gate, up = F.linear(x, w13).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, w2)


def dense_form(block: nn.Module) -> Dense:
    """Read the dense form off a block that was built on one rank. Raises NoDenseForm."""
    experts = _only("experts", [m for m in block.modules() if isinstance(m, ReferenceExperts)])
    if experts.activation != "silu" or not experts.gated or experts.weight_on_input or experts.no_combine:
        raise NoDenseForm("its experts are no plain SwiGLU")
    if experts.gemm1_alpha is not None or experts.gemm1_clamp_limit is not None:
        raise NoDenseForm("its experts' activation has a limit")
    if experts.w13_weight_bias is not None:
        raise NoDenseForm("its experts have biases")
    settings = _settings(block)
    left = dict(block.named_parameters())
    _take(left, lambda name, p: p is experts.w13_weight or p is experts.w2_weight)
    correction = settings("correction_bias", None)
    if correction is not None:
        _take(left, lambda name, p: p.data_ptr() == correction.data_ptr())
    shared_gate = _take(left, lambda name, p: "shared" in name and tuple(p.shape) == (1, experts.hidden_size))
    shared = _shared(block, left)
    count = experts.num_experts
    gate = _only("gates", _take(left, lambda name, p: tuple(p.shape) == (count, experts.hidden_size)))
    gate_bias = _take(left, lambda name, p: name.endswith("gate.bias") and tuple(p.shape) == (count,))
    if left:
        raise NoDenseForm(f"parameter {next(iter(left))}")
    if bool(shared_gate) and shared is None:
        raise NoDenseForm("a gate of a shared expert without one")
    return Dense(
        _double(gate),
        _double(gate_bias[0]) if gate_bias else None,
        _double(correction) if correction is not None else None,
        settings("scoring_func", "softmax") == "sigmoid"
        or (correction is not None and settings("use_grouped_topk", 0)),
        int(settings("top_k", 0)),
        bool(settings("renormalize", True)),
        _double(experts.w13_weight),
        _double(experts.w2_weight),
        shared,
        _double(shared_gate[0]) if shared_gate else None,
        _scale(block, settings),
        max((p.dtype for p in block.parameters() if p.is_floating_point()), key=lambda dtype: torch.finfo(dtype).eps),
    )


def _tree_modules(block: nn.Module) -> Iterator[nn.Module]:
    """The block and the modules in it that are the tree's own: asked for what they lack, the experts would refuse."""
    return (module for module in block.modules() if not isinstance(module, ReferenceExperts))


def _settings(block: nn.Module) -> Any:
    """A getter of the routing's settings. Raises NoDenseForm."""
    inside = (m for m in _tree_modules(block) if m is not block)
    router = _only("routers", [m for m in inside if hasattr(m, "topk_config") or hasattr(m, "top_k")])
    config = getattr(router, "topk_config", router)

    def setting(name: str, default: Any) -> Any:
        value = getattr(config, name, default)
        return default if value is None else value

    if setting("custom_routing_function", None) is not None:
        raise NoDenseForm("a routing function of its own")
    if setting("num_fused_shared_experts", 0):
        raise NoDenseForm("shared experts fused into the routed ones")
    if setting("use_grouped_topk", False) and setting("num_expert_group", 1) > 1:
        raise NoDenseForm("routing over groups of experts")
    return setting


def _shared(block: nn.Module, left: dict[str, nn.Parameter]) -> tuple[torch.Tensor, torch.Tensor] | None:
    found = [m for m in _tree_modules(block) if hasattr(m, "gate_up_proj") and hasattr(m, "down_proj")]
    if not found:
        return None
    module: Any = _only("shared experts", found)
    if type(getattr(module, "act_fn", None)).__name__ != "SiluAndMul":
        raise NoDenseForm("its shared expert is no plain SwiGLU")
    pair = module.gate_up_proj.weight, module.down_proj.weight
    _take(left, lambda name, p: p is pair[0] or p is pair[1])
    return _double(pair[0]), _double(pair[1])


def _scale(block: nn.Module, settings: Any) -> float:
    value = getattr(block, "routed_scaling_factor", None) or settings("routed_scaling_factor", None) or 1.0
    return float(value)


def _take(left: dict[str, nn.Parameter], wanted: Any) -> list[nn.Parameter]:
    """Take the parameters that are wanted out of those that are left."""
    return [left.pop(name) for name, parameter in list(left.items()) if wanted(name, parameter)]


def _only(what: str, found: list[Any]) -> Any:
    if len(found) != 1:
        raise NoDenseForm(f"{len(found) or 'no'} {what}")
    return found[0]


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double().cpu()
