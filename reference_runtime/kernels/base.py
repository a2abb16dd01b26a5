"""What a set of kernels computes. All shapes are per rank; tensors live on the run's device in the run's dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from reference_runtime.comm.group import Group


@dataclass(frozen=True, slots=True)
class ExpertsCall:
    """The experts of one rank on some tokens.

    Attributes:
        x: [tokens, hidden].
        ids: [tokens, top_k] local expert numbers; -1: the expert lives elsewhere.
        weights: [tokens, top_k], in `x`'s dtype.
        w13: [experts, 2 * intermediate, hidden] (gate rows, then up rows), or [experts, intermediate, hidden] for
            experts without a gate.
        w2: [experts, hidden, intermediate].
        b13, b2: biases of the same leading shapes, or None.
        activate: the activation function, the gate included: [..., w13's rows] -> [..., intermediate].
        combine: sum over top_k; otherwise the result is [tokens, top_k, hidden].
        weight_on_input: scale the tokens before the experts instead of the results after.
    """

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    w13: torch.Tensor
    w2: torch.Tensor
    b13: torch.Tensor | None
    b2: torch.Tensor | None
    activate: Callable[[torch.Tensor], torch.Tensor]
    combine: bool
    weight_on_input: bool


class Kernels(Protocol):
    """One implementation of the kernels. Functions are pure unless they say otherwise."""

    name: str

    def experts(self, call: ExpertsCall) -> torch.Tensor:
        """The local experts' weighted sum, [tokens, hidden]: a partial sum if the experts are sharded."""

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """silu(x[..., :d]) * x[..., d:] for x of last dimension 2 d."""

    def fused_add_rmsnorm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rmsnorm(x + residual) * weight, x + residual)."""

    def allreduce_add_rmsnorm(
        self, group: Group, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The fused absorber: like `fused_add_rmsnorm` of the group's sum of `x`."""
