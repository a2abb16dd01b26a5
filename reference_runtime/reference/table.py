"""Which module of an engine is run, which has an implementation here, and which is a placeholder.

Names are relative to the engine's package: the folder with `models` and `layers`.
"""

from __future__ import annotations

import fnmatch
import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

from reference_runtime.reference import distributed, environment, fusion, linear, moe, passthrough
from reference_runtime.space import Tier

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace

Installer = Callable[["ModuleSpace", types.ModuleType], None]

#: Run as they are. The first matching pattern of REFERENCE wins over these.
REAL = (
    "models", "models.*",
    "layers.moe", "layers.moe.utils", "layers.moe.topk", "layers.moe.moe_runner.base",
    "layers.dp_attention", "layers.communicator", "layers.communicator_*",
    "layers.layer_boundary", "layers.layer_boundary.*",
    fusion.MODULE, "layers.linear", "layers.parameter", "layers.layernorm", "layers.activation",
    "layers.utils", "layers.utils.*",
    "distributed", "distributed.parallel_state", "distributed.communication_op", "distributed.utils",
    "utils", "utils.common", "utils.*",
    "environ", "runtime_context", "configs.*", "arg_groups", "arg_groups.arg_utils", "arg_groups.fields.*",
    "layers.dual_gemm", "layers.layernorm_sp", "speculative.spec_info", "model_executor.forward_context",
    "model_executor.forward_batch_info", "model_executor.forward_batch_deepseek_mha_mixin",
)  # fmt: skip

#: Run as they are: small modules beside the engine's package.
REAL_BESIDE = ("kernel_api_logging", "kernels.fused_op", "kernels.spec", "kernels.registry", "kernels.selector",
               "kernels.kernel_api_logging")  # fmt: skip

#: Filled by the runtime.
REFERENCE: dict[str, Installer] = {
    "layers.moe.ep_moe.layer": moe.install,
    "layers.moe.fused_moe_triton": moe.install,
    "layers.moe.fused_moe_triton.layer": moe.install,
    "layers.quantization.unquant": linear.install,
    "server_args": environment.install_server_args,
    "arg_groups.overrides": environment.install_resolution,
    "arg_groups.model_override_base": environment.install_resolution,
    "utils.custom_op": passthrough.custom_op,
    "eplb.expert_distribution": passthrough.expert_distribution,
    "eplb.expert_location_dispatch": passthrough.expert_location_dispatch,
    "distributed.device_communicators.pynccl_allocator": passthrough.symmetric_memory,
    "layers.moe.routed_experts_capturer": passthrough.experts_capturer,
    "state_capturer.routed_experts": passthrough.experts_capturer,
    "platforms": passthrough.platforms,
    "batch_overlap.single_batch_overlap": passthrough.single_batch_overlap,
    "single_batch_overlap": passthrough.single_batch_overlap,
    "configs.model_config": passthrough.model_config,
    "layers.attention.nsa.utils": passthrough.context_parallel,
    "layers.attention.dsa.utils": passthrough.context_parallel,
    "layers.cp.utils": passthrough.context_parallel,
    "compilation.piecewise_context_manager": passthrough.piecewise_graphs,
    "model_executor.runner_backend_utils.tc_piecewise_cuda_graph": passthrough.piecewise_graphs,
    "model_executor.runner_backend_utils.breakable_cuda_graph": passthrough.piecewise_graphs,
    "model_executor.runner_backend_utils.breakable_cuda_graph.context": passthrough.piecewise_graphs,
    "model_executor.cuda_graph_runner": passthrough.cuda_graphs,
    "model_executor.runner": passthrough.cuda_graphs,
    "model_executor.runner_utils.capture_mode": passthrough.cuda_graphs,
    "layers.moe.mega_moe": passthrough.mega_moe,
}

#: Changed after their own code has run.
AFTER: dict[str, Installer] = {
    "utils": environment.patch_platform,
    "utils.common": environment.patch_platform,
    "arg_groups.arg_utils": environment.patch_argument_groups,
    "distributed.parallel_state": distributed.patch_parallel_state,
    "layers.dp_attention": distributed.patch_dp_attention,
    "layers.communicator": fusion.allow,
    fusion.MODULE: fusion.engage,
    "layers.moe.topk": passthrough.one_bias_per_expert,
}


@functools.cache
def tier_of(relative: str) -> Tier:
    """The tier of a module, by its name below the engine's package."""
    if relative in REFERENCE:
        return Tier.REFERENCE
    if any(fnmatch.fnmatchcase(relative, pattern) for pattern in REAL):
        return Tier.REAL
    return Tier.STUB
