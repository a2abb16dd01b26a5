"""One rank's world: a module space of one tree, set up for one topology, as a server would have done it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from reference_runtime.calling import call
from reference_runtime.comm.base import Trace, Transport
from reference_runtime.comm.group import Group
from reference_runtime.config import Config
from reference_runtime.kernels.base import Kernels
from reference_runtime.reference import batch, distributed, fusion, ops, streams, table
from reference_runtime.reference.batch import Batch
from reference_runtime.reference.environment import Declared, ServerArguments, declared
from reference_runtime.reference.rest import complete
from reference_runtime.scenarios import Case, Launch
from reference_runtime.space import ModuleSpace, Tier, mentions
from reference_runtime.stubs import Stub, setting_up
from reference_runtime.topology import Topology
from reference_runtime.tree import Tree

T = TypeVar("T")

#: What some trees have, and reference implementations ask for.
_SOMETIMES = ("runtime_context", "layers.moe.moe_runner.base", "layers.layer_boundary")


@dataclass
class RankContext:
    """Everything that reference implementations know about their rank."""

    tree: Tree
    launch: Launch
    transport: Transport
    kernels: Kernels
    dtype: torch.dtype
    device: torch.device
    config: Config
    trace: Trace = field(default_factory=Trace)
    #: rows of every attention-DP rank in the current batch
    global_num_tokens: list[int] = field(default_factory=list)
    capture_mode: bool = False
    #: the stand-ins for attentions, in the order of construction
    attentions: list[Any] = field(default_factory=list)
    space: ModuleSpace = field(init=False)
    server_arguments: ServerArguments = field(init=False)
    _declared: Declared = field(init=False)
    _shared: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        engine = self.tree.engine
        self.space = ModuleSpace(
            self.tree.root,
            self.tree.package,
            self._tier,
            {f"{engine}.{name}": install for name, install in table.REFERENCE.items()},
            {f"{engine}.{name}": install for name, install in table.AFTER.items()},
            complete,
            ops.FUNCTIONS,
            self.tree.overlay,
        )
        self.space.context = self
        self.trace.watched = self.tree.model_folders()
        self._set_arguments()

    def _set_arguments(self) -> None:
        self._declared = declared(self.tree.argument_files())
        kind = self.shared("ServerArgs", lambda: ServerArguments.of_tree(self._declared.namespaces))
        # every published argument has a value, if only a placeholder
        defaults = {name: Stub(f"ServerArgs.{name}") for name in self._declared.namespaces}
        self.server_arguments = kind({**defaults, **self._declared.defaults}, self._arguments())

    @property
    def topology(self) -> Topology:
        return self.launch.topology

    def _tier(self, name: str) -> Tier:
        engine = self.tree.engine
        if name == engine or engine.startswith(f"{name}."):
            return Tier.NAMESPACE
        if not name.startswith(f"{engine}."):
            beside = name.removeprefix(f"{engine.rpartition('.')[0]}.")
            return Tier.REAL if beside in table.REAL_BESIDE else Tier.STUB
        relative = name[len(engine) + 1 :]
        if relative == "layers":
            return Tier.NAMESPACE
        return table.tier_of(relative)

    def _arguments(self) -> dict[str, Any]:
        t, launch = self.topology, self.launch
        return {
            "tp_size": t.tp, "ep_size": t.ep, "pp_size": 1, "moe_dp_size": 1, "attn_cp_size": 1,
            "nnodes": 1, "node_rank": 0, "enable_dp_attention": launch.dp_attention, "moe_dense_tp_size": None,
            "device": str(self.device), "dtype": "auto", "quantization": "modelopt_fp4" if launch.fp4 else None,
            "moe_a2a_backend": "none", "deepep_mode": "auto", "deepep_config": None, "kv_cache_dtype": "auto",
            "moe_runner_backend": "flashinfer_cutlass" if launch.fp4 else "auto",
            "speculative_moe_runner_backend": None, "speculative_moe_a2a_backend": None, "speculative_algorithm": None,
            "disable_flashinfer_cutlass_moe_fp4_allgather": not launch.fp4, "ep_num_redundant_experts": 0,
            "disable_shared_experts_fusion": True, "enable_flashinfer_allreduce_fusion": launch.fusion,
            "flashinfer_allreduce_fusion_backend": "trtllm" if launch.fusion else None,
            "enable_aiter_allreduce_fusion": False, "enable_two_batch_overlap": False,
            "enable_single_batch_overlap": False, "rl_on_policy_target": None, "enable_deterministic_inference": False,
            "enable_torch_compile": False, "attention_backend": "triton", "model_path": "",
            "json_model_override_args": "{}", "boundary_reduction": "rs+rsv",
            **self._data_parallel_sizes(),
        }  # fmt: skip

    def _data_parallel_sizes(self) -> dict[str, int]:
        """Trees that have a size for attention DP keep `dp_size` for replicas of the model."""
        if "attn_dp_size" in self._declared.names:
            return {"attn_dp_size": self.topology.dp, "dp_size": 1}
        return {"dp_size": self.topology.dp}

    # --- what reference implementations ask

    @property
    def moe_ep_rank(self) -> int:
        return self.group("moe_ep").rank_in_group if self.topology.ep > 1 else 0

    @property
    def moe_tp_rank(self) -> int:
        return self.group("moe_tp").rank_in_group if self.topology.moe_tp > 1 else 0

    def shared(self, key: str, make: Callable[[], T]) -> T:
        """One object per rank under a name, made on first use."""
        if key not in self._shared:
            self._shared[key] = make()
        result: T = self._shared[key]
        return result

    def make_group(self, name: str, ranks: Iterable[int]) -> Group:
        return Group(name, list(ranks), self.transport, self.trace)

    def group(self, name: str) -> Group:
        """The tree's own group: `tp`, `attn_tp`, `moe_ep`, `moe_tp`."""
        state = self.module("distributed.parallel_state")
        getter = getattr(state, f"get_{name}_group", None)
        if getter is None and name == "attn_tp":
            getter = self.module("layers.dp_attention").get_attention_tp_group
        if getter is None:
            raise ValueError(f"the tree has no get_{name}_group")
        group = getter()
        if not isinstance(group, Group):
            raise ValueError(f"get_{name}_group() gives no group")
        return group

    def fused_sum(self, output: torch.Tensor) -> torch.Tensor:
        """What the tree's fused all-reduce makes of a block's output, [rows, hidden]."""
        weight = torch.ones(output.shape[-1], dtype=output.dtype, device=output.device)
        residual = torch.zeros_like(output)
        # the second result is residual + sum; without a residual it is the sum, with no digit lost
        total: torch.Tensor
        if not self.has(fusion.MODULE):  # the communicator has a kernel of its own
            _, total = self.kernels.allreduce_add_rmsnorm(self.group("tp"), output, residual, weight, 1e-6)
        else:
            wrapper = getattr(self.module(fusion.MODULE), fusion.WRAPPER)
            given = {"input_tensor": output.contiguous(), "residual": residual, "weight": weight}
            _, total = call(wrapper, {**given, "use_attn_tp_group": False})
        return total

    def forward_flags(self) -> frozenset[str]:
        """The layer-context flags that this tree keeps in a forward context; empty where they are parameters."""
        forward = self._forward()
        return frozenset(getattr(type(forward), "_DEFAULTS", ())) if forward is not None else frozenset()

    def scoped(self, flags: dict[str, bool]) -> contextlib.AbstractContextManager[Any]:
        """The tree's own scope that publishes such flags to the model code inside it."""
        forward = self._forward()
        if not flags or forward is None:
            return contextlib.nullcontext()
        scope: contextlib.AbstractContextManager[Any] = forward.scoped(**flags)
        return scope

    def _forward(self) -> Any:
        getter = getattr(self.runtime(), "get_forward", None)
        return getter() if getter is not None else None

    def forward_batch(self, case: Case, rows: int) -> Batch:
        """The metadata of a batch: an extend of the case's tokens."""
        return batch.make(self, case, rows)

    def moe_a2a_is_none(self) -> bool:
        return bool(self.module("layers.moe.utils").get_moe_a2a_backend().is_none())

    def predicate(self, name: str) -> bool:
        """A predicate of the tree's `layers.moe.utils`; false where the tree has none of that name."""
        function = getattr(self.module("layers.moe.utils"), name, None)
        return bool(function()) if function is not None else False

    def module(self, relative: str) -> Any:
        return self.space.load(f"{self.tree.engine}.{relative}")

    def has(self, relative: str) -> bool:
        """Whether the tree has a module of that name."""
        return self.space.path(f"{self.tree.engine}.{relative}") != (None, False)

    def defines(self, relative: str, name: str) -> bool:
        """Whether a file of the tree may define the name."""
        file = self.space.path(f"{self.tree.engine}.{relative}")[0]
        return file is not None and mentions(file, name)

    # --- set-up

    def preload(self, model: str) -> None:
        """Import what every launch needs, and the model."""
        with setting_up():
            for name in ("distributed.parallel_state", "layers.dp_attention", "layers.moe.utils",
                         "model_executor.forward_batch_info", f"models.{model}"):  # fmt: skip
                self.module(name)
            for name in _SOMETIMES:
                if self.has(name):
                    self.module(name)

    def enter(self, launch: Launch, transport: Transport) -> None:
        """Lay out the groups and initialise the engine's process-wide state, as its server does."""
        self.launch, self.transport = launch, transport
        self._set_arguments()
        with setting_up():
            self._publish()
            distributed.lay_out(self.space, self.module("distributed.parallel_state"))
            attention = self.module("layers.dp_attention")
            for name in ("initialize_dp_attention", "init_dp_gathered_buffer"):
                if hasattr(attention, name):
                    call(getattr(attention, name), self._dp_arguments())
            call(self.module("layers.moe.utils").initialize_moe_config, {"server_args": self.server_arguments})

    def runtime(self) -> Any:
        """The tree's module of process-wide state; None where it has none."""
        return self.module("runtime_context") if self.has("runtime_context") else None

    def _publish(self) -> None:
        """Hand the server arguments to the tree's process-wide state, as its scheduler process does."""
        runtime = self.runtime()
        groups = self.tree.folder.joinpath("arg_groups", "fields").glob("[!_]*.py")
        modules = [self.module(f"arg_groups.fields.{file.stem}") for file in sorted(groups)]
        type(self.server_arguments).settle(
            value for module in modules for value in vars(module).values() if hasattr(value, "_NS_PATH")
        )
        publish = getattr(runtime, "publish", None)
        if publish is not None:
            ranks = getattr(runtime, "SpawnRanks", None)
            given = {"server_args": self.server_arguments, "role": "scheduler"}
            if ranks is not None:
                given["ranks"] = ranks(world_rank=self.transport.rank, gpu_id=self.transport.rank)
            call(publish, given)
            return
        # older trees keep the arguments in the context, or have a context of groups alone
        getter = getattr(runtime, "get_context", None)
        keep = getattr(getter(), "set_server_args", None) if getter is not None else None
        if keep is not None:
            keep(self.server_arguments)
        self._resolve(runtime)

    def _resolve(self, runtime: Any) -> None:
        """Set the flags that some trees keep beside the arguments of the same name: what those resolve to."""
        getter = getattr(runtime, "get_flags", None)
        flags = getter() if getter is not None else None
        if not dataclasses.is_dataclass(flags):
            return
        given = self._arguments()
        for flag in dataclasses.fields(flags):
            if flag.name in given:
                setattr(flags, flag.name, given[flag.name])

    def _dp_arguments(self) -> dict[str, Any]:
        t, rank = self.topology, self.transport.rank
        return {
            "server_args": self.server_arguments, "model_config": self.config, "tp_rank": rank, "tp_size": t.tp,
            "enable_dp_attention": self.launch.dp_attention, "dp_size": t.dp, "moe_dense_tp_size": None, "pp_size": 1,
        }  # fmt: skip

    def set_batch(self, rows: Sequence[int], max_padding: bool) -> None:
        """Tell the tree's DP attention how many rows each attention-DP rank has, padding included.

        Args:
            max_padding: all are padded to the longest.
        """
        rows = list(rows)
        self.global_num_tokens = rows
        attention = self.module("layers.dp_attention")
        local = rows[self.topology.dp_rank(self.transport.rank)]
        call(
            attention.set_dp_buffer_len,
            {
                "global_dp_buffer_len": sum(rows), "local_dp_buffer_len": local, "dp_max_padding": max_padding,
                "global_num_tokens": rows, "num_tokens": local,
            },
        )  # fmt: skip

    def capture(self, on: bool) -> None:
        """Say whether a graph is being captured."""
        self.capture_mode = on
        streams.capture(on)

    def close(self) -> None:
        self.space.close()
