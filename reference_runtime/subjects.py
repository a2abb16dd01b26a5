"""What is run: a class of one tree, built on every rank of a launch, fed with a case, compared with the oracle."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from reference_runtime.absorbers import absorb
from reference_runtime.calling import call, parameters, takes
from reference_runtime.comm.base import Infeasible
from reference_runtime.dense import Dense, dense_form
from reference_runtime.discover import Block
from reference_runtime.reference.streams import second_stream
from reference_runtime.scenarios import Case
from reference_runtime.stubs import StubReached, building, running
from reference_runtime.weights import fill, named_tensor
from reference_runtime.world import RankContext

#: The layer-context flags and the names under which releases pass them: parameter, or field of a forward context.
_FUSION = ("should_allreduce_fusion", "fuse_mlp_allreduce")
_REDUCE_SCATTER = ("use_reduce_scatter", "mlp_reduce_scatter")


class Subject(Protocol):
    """A level at which a model is run."""

    #: shapes of the weights without a loader, as built on one rank: a rank of many must find the same
    unsharded: dict[str, tuple[int, ...]]

    @property
    def module(self) -> str:
        """The model's module, relative to the engine's `models`."""

    def build(self, context: RankContext) -> Any:
        """The model on one rank, with its weights."""

    def dense(self, model: Any) -> Dense:
        """The dense form of the model as built on one rank. Raises NoDenseForm."""

    def run(self, context: RankContext, model: Any, case: Case) -> torch.Tensor:
        """The rank's own rows after everything that sums them, [rows, hidden]."""


def own_tokens(context: RankContext, dp_rank: int, rows: int) -> torch.Tensor:
    """The tokens of an attention-DP rank: different on each."""
    return named_tensor(f"tokens.{dp_rank}", (rows, context.config.hidden_size), context.dtype, context.device).clone()


def padded_tokens(context: RankContext, case: Case, dp_rank: int) -> torch.Tensor:
    """The tokens of one attention-DP rank, and rows of padding with values that no output may depend on."""
    count, rows = case.tokens[dp_rank], case.rows[dp_rank]
    tokens = own_tokens(context, case.first + dp_rank, count)
    if rows == count:
        return tokens
    shape = (rows - count, context.config.hidden_size)
    return torch.cat([tokens, named_tensor(f"padding.{dp_rank}", shape, context.dtype, context.device)])


def gathered_tokens(context: RankContext, case: Case) -> torch.Tensor:
    """The input of a block: the own tokens, or those of all attention-DP ranks as the communicator gathers them."""
    return torch.cat([padded_tokens(context, case, dp_rank) for dp_rank in range(len(case.tokens))])


@dataclass
class BlockSubject:
    """The MoE block alone; the absorber is ours (`absorbers.py`)."""

    block: Block
    #: shapes of the weights that the model shards or not by itself, as built on one rank
    unsharded: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.block.module

    def build(self, context: RankContext) -> Any:
        module = context.module(f"models.{self.block.module}")
        made = getattr(module, self.block.name, None)
        if made is None:
            raise StubReached(f"{self.block.module} defines no {self.block.name}")
        with building():
            model = call(made, constructor_values(context, self.block.name))
        self.unsharded = filled(model, self.block.name, context, self.unsharded)
        return model

    def dense(self, model: Any) -> Dense:
        return dense_form(model)

    def run(self, context: RankContext, model: Any, case: Case) -> torch.Tensor:
        dp_rank = context.topology.dp_rank(context.transport.rank)
        count = case.tokens[dp_rank]
        x = padded_tokens(context, case, dp_rank) if case.launch.fp4 else gathered_tokens(context, case)
        context.set_batch(case.rows, max_padding=case.padding == "max")
        context.capture(case.capture)
        context.trace.clear()
        with running(), layer_flags(context, model, case) as flags:
            values = {**forward_values(context, case, x), **flags}
            output = call_forward(model.forward, x, values)
            output = output[0] if isinstance(output, tuple) else output
            return absorb(context, case, output.reshape(-1, x.shape[-1]), self.block.owner)[:count]


def filled(
    model: Any, name: str, context: RankContext, unsharded: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Give a model its weights; the shapes of those without a loader, as built on one rank.

    Args:
        name: what is built, for the message.
        unsharded: these shapes, where one rank has built it before.

    Raises:
        StubReached: a weight has another shape here: how the model shards it is not known.
    """
    shapes = fill(model, "model")
    if context.transport.world_size == 1:
        return shapes
    for weight, shape in shapes.items():
        if unsharded.get(weight, shape) != shape:
            raise StubReached(f"{name}: the weight {weight} is sharded by the model itself")
    return unsharded


def constructor_values(context: RankContext, prefix: str) -> dict[str, Any]:
    """Values for a constructor's parameters, by the names that model files use."""
    return {
        "config": context.config, "layer_id": 1, "layer_idx": 1, "layer_index": 1, "layer_number": 1,
        "quant_config": None, "prefix": prefix, "alt_stream": second_stream(context.device), "is_nextn": False,
        "num_experts": context.config.num_experts, "top_k": context.config.top_k,
        "hidden_size": context.config.hidden_size, "intermediate_size": context.config.moe_intermediate_size,
        "params_dtype": context.dtype, "hidden_act": "silu",
    }  # fmt: skip


def forward_values(context: RankContext, case: Case, x: torch.Tensor) -> dict[str, Any]:
    """Values for a forward's parameters beside its input."""
    batch = context.forward_batch(case, x.shape[0])
    router = named_tensor("router", (context.config.num_experts, x.shape[-1]), x.dtype, x.device)
    return {
        "forward_batch": batch, "forward_mode": batch.forward_mode, "residual": None, "router_logits": x @ router.T,
        "visual_token_mask": torch.zeros(x.shape[0], dtype=torch.bool, device=x.device),
    }  # fmt: skip


def call_forward(forward: Any, x: torch.Tensor, values: dict[str, Any]) -> Any:
    """Call a forward whose first parameter is the input, whatever its name."""
    first = next(iter(parameters(forward)))
    return call(forward, {**values, first: x})


@contextlib.contextmanager
def layer_flags(context: RankContext, model: Any, case: Case) -> Iterator[dict[str, bool]]:
    """Tell the block what the layer will do: by parameter, by forward context, or both.

    Raises:
        Infeasible: a flag is set that this block has no way to learn.
    """
    flags: dict[str, bool] = {}
    scoped: dict[str, bool] = {}
    fields = context.forward_flags()
    for names, value in ((_FUSION, case.fusion), (_REDUCE_SCATTER, case.reduce_scatter)):
        parameters = [name for name in names if takes(model.forward, name)]
        contextual = [name for name in names if name in fields]
        if value and not parameters and not contextual:
            raise Infeasible(f"{type(model).__name__}.forward takes no `{names[0]}`")
        flags.update(dict.fromkeys(parameters, value))
        scoped.update(dict.fromkeys(contextual, value))
    with context.scoped(scoped):
        yield flags


def digest(tensors: list[torch.Tensor]) -> str:
    """Of all bits, in rank order."""
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(str(tuple(tensor.shape)).encode())
        state.update(tensor.detach().to("cpu").contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]
