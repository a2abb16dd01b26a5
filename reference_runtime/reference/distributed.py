"""Process groups: the tree's own `initialize_model_parallel` lays them out, over our transport."""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any

import torch

from reference_runtime.comm.group import Group
from reference_runtime.reference.ops import copy_rows

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace
    from reference_runtime.world import RankContext


class _Distributed:
    """`torch.distributed` as the layout code sees it: initialised, with the run's rank and size."""

    def __init__(self, context: RankContext) -> None:
        self._context = context

    def is_initialized(self) -> bool:
        return True

    def get_rank(self, group: Any = None) -> int:
        return self._context.transport.rank

    def get_world_size(self, group: Any = None) -> int:
        return self._context.transport.world_size

    def get_backend(self, group: Any = None) -> str:
        return "gloo"

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.distributed, name)


class _Torch:
    """torch with another `distributed`, for the one module that lays out the groups."""

    def __init__(self, context: RankContext) -> None:
        self.distributed = _Distributed(context)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def patch_parallel_state(space: ModuleSpace, module: types.ModuleType) -> None:
    """Replace the group class of the tree's `parallel_state`; its layout and its getters stay its own."""
    context: RankContext = space.context

    def coordinator(group_ranks: list[list[int]], *_: Any, group_name: str | None = None, **__: Any) -> Group:
        mine = next(ranks for ranks in group_ranks if context.transport.rank in ranks)
        return context.make_group(group_name or "anonymous", mine)

    module.__dict__["GroupCoordinator"] = coordinator
    module.__dict__["torch"] = _Torch(context)


def lay_out(space: ModuleSpace, module: types.ModuleType) -> None:
    """Run the tree's `initialize_model_parallel` for the context's topology.

    Raises:
        ValueError: the tree cannot express the topology.
    """
    context, topology = space.context, space.context.topology
    world = context.make_group("world", range(context.transport.world_size))
    module.__dict__["_WORLD"] = world
    initialise = module.__dict__["initialize_model_parallel"]
    wanted = {
        "tensor_model_parallel_size": topology.tp,
        "expert_model_parallel_size": topology.ep,
        "pipeline_model_parallel_size": 1,
        "attention_data_parallel_size": topology.dp,
        "moe_data_model_parallel_size": 1,
        "backend": "gloo",
    }
    known = inspect.signature(initialise).parameters
    runtime = context.runtime()
    stamp = getattr(runtime.get_parallel(), "override_permanently", None) if runtime is not None else None
    if stamp is not None:
        stamp(world_group=world)
    initialise(**{name: value for name, value in wanted.items() if name in known})
    for name, size in (("tp", topology.tp), ("moe_ep", topology.ep), ("attn_tp", topology.tp // topology.dp)):
        # older trees lay out the attention groups when they initialise the DP attention, or keep sizes elsewhere
        if hasattr(module, f"get_{name}_group") and (built := context.group(name).world_size) != size:
            raise ValueError(f"initialize_model_parallel of this tree made {name} groups of {built}, not of {size}")


def patch_dp_attention(space: ModuleSpace, module: types.ModuleType) -> None:
    """The tree's copy of rows is a GPU kernel: copy with torch."""
    if "memcpy_triton" in module.__dict__:
        module.__dict__["memcpy_triton"] = copy_rows
