"""Parameters get their values where a loader would have put them, too."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from reference_runtime.weights import fill


class DerivedNorm(nn.Module):
    """Keeps another form of its weight, as norms for fused kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.shifted = self.weight.data + 1
        self.weight.weight_loader = self._load  # type: ignore[attr-defined]

    def _load(self, parameter: nn.Parameter, loaded: torch.Tensor) -> None:
        parameter.data.copy_(loaded)
        self.shifted = parameter.data + 1


class Sharded(nn.Module):
    """Its loader takes a slice of a tensor that is longer than the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8), requires_grad=False)
        self.weight.weight_loader = lambda p, loaded: p.data.copy_(loaded.narrow(0, 8, 8))  # type: ignore[attr-defined]


def test_what_a_loader_derives_from_a_weight_follows_the_weight() -> None:
    model = DerivedNorm()
    fill(model, "model")
    assert float(model.weight.abs().sum()) > 0
    assert torch.equal(model.shifted, model.weight.data + 1)


def test_a_loader_of_slices_leaves_the_value_as_it_was_filled() -> None:
    model = Sharded()
    assert fill(model, "model") == {".weight": (8,)}
    assert float(model.weight.abs().sum()) > 0
