"""Engine services without influence on the numbers: overlap, statistics, graph capture, allocation."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from reference_runtime.stubs import Stub

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace


def custom_op(space: ModuleSpace, module: types.ModuleType) -> None:
    """Registering a function as a torch operator does not change what it computes."""

    def register(function: Any = None, *_: Any, **__: Any) -> Any:
        return function if callable(function) else lambda inner: inner

    for name in ("register_custom_op", "register_custom_op_from_extern"):
        module.__dict__[name] = register


class _Recorder:
    """Counts nothing."""

    @contextlib.contextmanager
    def _nothing(self, *_: Any, **__: Any) -> Iterator[None]:
        yield

    with_current_layer = with_debug_name = disable_this_region = with_forward_pass = _nothing

    def on_select_experts(self, *_: Any, **__: Any) -> None:
        """Statistics only."""


def expert_distribution(space: ModuleSpace, module: types.ModuleType) -> None:
    """The recorder of expert statistics."""
    recorder = _Recorder()
    module.__dict__["get_global_expert_distribution_recorder"] = lambda: recorder


class _Capturer:
    """Keeps no copy of the routing."""

    def capture(self, *_: Any, **__: Any) -> None:
        """Statistics only."""


def experts_capturer(space: ModuleSpace, module: types.ModuleType) -> None:
    """The capturer of routed experts."""
    capturer = _Capturer()
    module.__dict__["get_global_experts_capturer"] = lambda: capturer


class _Platform:
    """Plain torch: every `is_…` question is answered no, anything else is not modelled."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith(("is_", "supports_", "support_")):
            return lambda *_, **__: False
        return Stub(f"current_platform.{name}")


def platforms(space: ModuleSpace, module: types.ModuleType) -> None:
    """The engine's plug-in for vendors."""
    module.__dict__["current_platform"] = _Platform()


class _DispatchInfo:
    """Logical experts are the physical ones: no redundant experts are configured."""

    @classmethod
    def init_new(cls, *_: Any, **__: Any) -> None:
        return None


def expert_location_dispatch(space: ModuleSpace, module: types.ModuleType) -> None:
    """The map from logical to physical experts: the identity."""
    module.__dict__["ExpertLocationDispatchInfo"] = _DispatchInfo
    module.__dict__["topk_ids_logical_to_physical"] = lambda ids, *_: ids
    module.__dict__["transform_select_experts_inputs"] = lambda router_logits, correction_bias, **__: (
        router_logits,
        correction_bias,
    )


class _Untagged:
    """A memory scope."""

    def tag(self, *_: Any) -> None:
        """Where a tensor lives does not change its content."""


def symmetric_memory(space: ModuleSpace, module: types.ModuleType) -> None:
    """Where a buffer lives does not change its content."""
    module.__dict__["use_symmetric_memory"] = lambda *_, **__: contextlib.nullcontext(_Untagged())
    module.__dict__["is_symmetric_memory_enabled"] = lambda: False


class _NoOverlap:
    """Every question about the overlap of one batch: no."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: False


def single_batch_overlap(space: ModuleSpace, module: types.ModuleType) -> None:
    """Overlap inside one batch is off."""
    module.__dict__["SboFlags"] = _NoOverlap()


def context_parallel(space: ModuleSpace, module: types.ModuleType) -> None:
    """Context parallelism is off."""
    for name in ("is_nsa_enable_prefill_cp", "nsa_use_prefill_cp", "is_nsa_prefill_cp_round_robin_split",
                 "is_nsa_prefill_cp_in_seq_split", "is_dsa_enable_prefill_cp", "dsa_use_prefill_cp",
                 "is_cp_active", "is_mla_cp_enabled", "is_mla_cp_active"):  # fmt: skip
        module.__dict__[name] = _no
    module.__dict__["maybe_prefetch_next_full_attention_kv"] = lambda *_, **__: None


def _no(*_: Any, **__: Any) -> bool:
    return False


def model_config(space: ModuleSpace, module: types.ModuleType) -> None:
    """The models here have dense attention."""
    for name in ("is_deepseek_nsa", "is_deepseek_dsa", "is_deepseek_v4"):
        module.__dict__[name] = _no


def piecewise_graphs(space: ModuleSpace, module: types.ModuleType) -> None:
    """No graph in pieces is being captured or replayed."""
    for name in ("is_in_piecewise_cuda_graph", "is_in_tc_piecewise_cuda_graph", "is_in_breakable_cuda_graph"):
        module.__dict__[name] = lambda: False


def cuda_graphs(space: ModuleSpace, module: types.ModuleType) -> None:
    """Whether a graph is being captured, as the case says."""
    module.__dict__["get_is_capture_mode"] = lambda: space.context.capture_mode


def mega_moe(space: ModuleSpace, module: types.ModuleType) -> None:
    """The experts that send their tokens themselves: not used without that all-to-all backend."""
    module.__dict__["should_use_mega_moe"] = _no


def one_bias_per_expert(space: ModuleSpace, module: types.ModuleType) -> None:
    """The routing kernels take a correction bias of [1, experts] as one of [experts]; torch does not."""
    top_k = module.__dict__.get("TopK")
    if top_k is None:
        return
    original = top_k.__init__

    @functools.wraps(original)
    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        bias = kwargs.get("correction_bias")
        if isinstance(bias, torch.Tensor) and bias.dim() == 2:
            kwargs["correction_bias"] = bias.data.squeeze(0)
        original(self, *args, **kwargs)

    top_k.__init__ = initialise
