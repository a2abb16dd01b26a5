"""The unquantised linear method: what the tree's own parallel linear layers multiply with."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace


class UnquantizedLinearMethod:
    """Creates and applies the weight [sum(output_partition_sizes), input_size_per_partition] of a linear layer."""

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        data = torch.empty(sum(output_partition_sizes), input_size_per_partition, dtype=params_dtype)
        weight = nn.Parameter(data, requires_grad=False)
        for name, value in {"input_dim": 1, "output_dim": 0, **attributes}.items():
            setattr(weight, name, value)
        layer.register_parameter("weight", weight)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Nothing to do."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        return F.linear(x, layer.weight, bias)


def install(space: ModuleSpace, module: types.ModuleType) -> None:
    """Fill the module that defines the unquantised methods."""
    module.__dict__["UnquantizedLinearMethod"] = UnquantizedLinearMethod
