"""Weights and tokens from names: every rank and every variant gets slices of the same full tensors."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reference_runtime.reference.moe import ReferenceExperts


@functools.lru_cache(maxsize=4096)
def named_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The full tensor of that name: the same numbers for the same name and shape, whoever asks. Not to be changed.

    Values are normal with a standard deviation of 1 / sqrt(fan in), so that activations keep their size; drawn in
    float64 on the CPU and rounded once.
    """
    seed = int.from_bytes(hashlib.sha256(f"{name}{shape}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device="cpu").manual_seed(seed)
    fan_in = shape[-1] if len(shape) > 1 else 4
    values: torch.Tensor = (
        torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") / float(fan_in) ** 0.5
    )
    if name.endswith(("norm.weight", "layernorm.weight")):
        values = 1 + values / 4
    return values.to(device=device, dtype=dtype)


def fill(model: nn.Module, seed: str) -> dict[str, tuple[int, ...]]:
    """Fill all parameters of ``model`` in place.

    A sharded weight takes its slice of the full tensor through the loader that the tree's own layer put on it; a
    parameter without a loader is filled as it is.

    Returns:
        The shapes of the parameters without a loader. If they differ between world sizes, the model shards them
        itself, and their values are not what a checkpoint would give.
    """
    own: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if isinstance(module, ReferenceExperts):
            w = module.w13_weight
            module.fill(functools.partial(_expert_tensor, f"{seed}.{path}", w.dtype, w.device))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            key = f"{seed}.{path}.{name}"
            loader = getattr(parameter, "weight_loader", None)
            shards = _shards(module, name) if loader is not None else None
            if loader is None or shards is None:
                own[f"{path}.{name}"] = tuple(parameter.shape)
                if parameter.is_floating_point():
                    full = named_tensor(key, tuple(parameter.shape), parameter.dtype, parameter.device)
                    parameter.data.copy_(full)
                    if loader is not None:
                        _told(loader, parameter, full)
                continue
            for shard, shape in shards:
                full = named_tensor(f"{key}.{shard}", shape, parameter.dtype, parameter.device)
                loader(parameter, full, *(() if shard is None else (shard,)))
    return own


def _told(loader: Callable[..., object], parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Let a loader see the value that its parameter has: some keep another form of it beside the parameter."""
    with contextlib.suppress(Exception):  # a loader of slices wants more than the slice; there is nothing else to keep
        loader(parameter, value.clone())


def _expert_tensor(
    prefix: str, dtype: torch.dtype, device: torch.device, name: str, shape: tuple[int, ...]
) -> torch.Tensor:
    return named_tensor(f"{prefix}.{name}", shape, dtype, device)


def _shards(module: Any, name: str) -> list[tuple[Any, tuple[int, ...]]] | None:
    """(shard id, full shape) of the tensors that a parallel linear layer loads; None: it is none."""
    if not hasattr(module, "input_size") or not hasattr(module, "output_size"):
        return None
    tail: tuple[int, ...] = (int(module.input_size),) if name == "weight" else ()
    if hasattr(module, "total_num_kv_heads"):
        heads, kv, head = module.total_num_heads, module.total_num_kv_heads, module.head_size
        v_head = getattr(module, "v_head_size", head)
        return [("q", (heads * head, *tail)), ("k", (kv * head, *tail)), ("v", (kv * v_head, *tail))]
    if isinstance(getattr(module, "output_sizes", None), (list, tuple)) and type(module).__name__.startswith("Merged"):
        return [(number, (int(size), *tail)) for number, size in enumerate(module.output_sizes)]
    return [(None, (int(module.output_size), *tail))]
