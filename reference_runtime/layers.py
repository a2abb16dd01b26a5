"""Layer level: two decoder layers of the model with the tree's own communicator around the MoE block.

Real: the decoder layer, its communicator, DP attention, norms, the MoE block. Ours: the attention, which is replaced
by a token-wise one that is sharded in the same way; the input; the last sum of output and residual.
"""

from __future__ import annotations

import ast
import contextlib
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reference_runtime.calling import call
from reference_runtime.dense import Dense, NoDenseForm
from reference_runtime.discover import Block
from reference_runtime.scenarios import Case
from reference_runtime.space import Tier
from reference_runtime.stubs import Stub, StubReached, building, running
from reference_runtime.subjects import constructor_values, filled, forward_values, padded_tokens
from reference_runtime.weights import named_tensor
from reference_runtime.world import RankContext

LAYERS = 2


class ReferenceAttention(nn.Module):
    """A token-wise stand-in, [rows, hidden] -> [rows, hidden]: column-parallel, then row-parallel over attention TP.

    The result is a partial sum, or the sum where the tree's own attention sums (`reduces`). Where the decoder takes
    more than one value from it, the others are placeholders.
    """

    context: RankContext
    reduces: bool
    outputs: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._number = len(self.context.attentions)
        self.context.attentions.append(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return Stub(f"attention.{name}")

    def maybe_use_decode_attn_tp(self, *_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
        """Other slices of the attention under context parallelism, which is off."""
        return contextlib.nullcontext()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = kwargs.get("hidden_states")
        if x is None:
            x = next((a for a in args if isinstance(a, torch.Tensor) and a.dim() == 2 and a.is_floating_point()), None)
        if x is None:
            raise StubReached("an attention that is called without hidden_states")
        group = self.context.group("attn_tp")
        hidden = x.shape[-1]
        part = hidden // group.world_size
        mine = slice(group.rank_in_group * part, (group.rank_in_group + 1) * part)
        name = f"attention.{self._number}"
        column = named_tensor(f"{name}.in", (hidden, hidden), x.dtype, x.device)[mine]
        row = named_tensor(f"{name}.out", (hidden, hidden), x.dtype, x.device)[:, mine]
        output = (x @ column.T) @ row.T
        output = group.all_reduce(output) if self.reduces else output
        return output if self.outputs == 1 else (output, *[Stub("attention()")] * (self.outputs - 1))


@dataclass
class LayerSubject:
    """Two layers of the block's decoder."""

    block: Block
    unsharded: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.block.module

    def build(self, context: RankContext) -> Any:
        block = self.block
        if block.decoder is None:
            raise StubReached(f"no decoder layer found around {block.name}")
        module = context.module(f"models.{block.module}")
        made = getattr(module, block.decoder, None)
        if made is None:
            raise StubReached(f"{block.module} defines no {block.decoder}")
        file = context.space.path(f"{context.tree.engine}.models.{block.module}")[0]
        assert file is not None
        context.attentions = []
        self._replace_attentions(context, module, file, block.decoder)
        layers = []
        with _stack(context):
            for number in range(LAYERS):
                values = constructor_values(context, f"layers.{number}")
                values.update(dict.fromkeys(("layer_id", "layer_idx", "layer_index", "layer_number"), number))
                with building():
                    layers.append(call(made, values))
        for layer in layers:
            if not any(type(part).__name__ == block.name for part in layer.modules()):
                raise StubReached(f"{block.decoder} built no {block.name}")
        model = nn.ModuleList(layers)
        self.unsharded = filled(model, str(block.decoder), context, self.unsharded)
        return model

    def dense(self, model: Any) -> Dense:
        raise NoDenseForm("layers have norms and residuals")

    def _replace_attentions(self, context: RankContext, module: Any, file: Path, decoder: str) -> None:
        for name in _attention_classes(file, decoder):
            real = getattr(module, name, None)
            if real is None:
                continue
            reduces = _sums_itself(context, real, name, file)
            if reduces is None:
                reduces = not self.block.communicator
            values = {"context": context, "reduces": reduces, "outputs": _outputs(file, decoder)}
            attention = type(name, (ReferenceAttention,), values)
            setattr(module, name, attention)

    def run(self, context: RankContext, model: Any, case: Case) -> torch.Tensor:
        dp_rank = context.topology.dp_rank(context.transport.rank)
        count = case.tokens[dp_rank]
        hidden = padded_tokens(context, case, dp_rank)
        context.set_batch(case.rows, max_padding=case.padding == "max")
        context.capture(case.capture)
        context.trace.clear()
        values = forward_values(context, case, hidden)
        values.update(positions=torch.arange(hidden.shape[0], device=hidden.device), residual=None)
        stream = _stream(context) if self.block.owner == "boundary" else None
        with running():
            residual = None
            if stream is not None:
                call(stream.start, values)
            for layer in model:
                values.update(hidden_states=hidden, residual=residual)
                result = call(layer.forward, values)
                hidden, residual = result[:2] if isinstance(result, tuple) else (result, None)
            if stream is not None:  # the model's last norm, which takes what the last layer has left to be summed
                return _final(context, stream, hidden, values)[:count]
            total = hidden if residual is None else hidden + residual
        return total[:count]


def _stack(context: RankContext) -> contextlib.AbstractContextManager[Any]:
    """The scope in which a tree with layer boundaries builds its layers: they connect in order."""
    if not context.has("layers.layer_boundary"):
        return contextlib.nullcontext()
    stack = getattr(context.module("layers.layer_boundary"), "layer_stack", None)
    scope: contextlib.AbstractContextManager[Any] = stack() if stack is not None else contextlib.nullcontext()
    return scope


def _stream(context: RankContext) -> Any:
    """The tree's functions on the residual stream of a batch; None where it has none."""
    name = "layers.layer_boundary.residual.batch"
    return context.module(name) if context.has(name) else None


def _final(context: RankContext, stream: Any, hidden: torch.Tensor, values: dict[str, Any]) -> torch.Tensor:
    norm = context.module("layers.layernorm").RMSNorm(hidden.shape[-1])
    last = getattr(stream, "final_norm", None) or stream.norm
    output = call(last, {**values, "hidden_states": hidden, "layernorm": norm})
    result: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return result


@functools.lru_cache(maxsize=256)
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes())


@functools.lru_cache(maxsize=256)
def _attention_classes(file: Path, decoder: str) -> tuple[str, ...]:
    """Names of the classes that a decoder's `__init__` puts into an attribute for its attention."""
    found: list[str] = []
    for node in _parsed(file).body:
        if not isinstance(node, ast.ClassDef) or node.name != decoder:
            continue
        for statement in ast.walk(node):
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Attribute):
                continue
            if _is_attention(statement.targets[0].attr):
                calls = [n.func for n in ast.walk(statement.value) if isinstance(n, ast.Call)]
                found += [f.id for f in calls if isinstance(f, ast.Name) and f.id[0].isupper()]
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _outputs(file: Path, decoder: str) -> int:
    """How many values a decoder takes from its attention."""
    for node in _parsed(file).body:
        for inner in ast.walk(node) if isinstance(node, ast.ClassDef) and node.name == decoder else ():
            if isinstance(inner, ast.Assign) and isinstance(inner.value, ast.Call):
                target, func = inner.targets[0], inner.value.func
                if isinstance(target, ast.Tuple) and isinstance(func, ast.Attribute) and _is_attention(func.attr):
                    own = isinstance(func.value, ast.Name) and func.value.id == "self"
                    if own and not any(isinstance(one, ast.Starred) for one in target.elts):
                        return len(target.elts)
    return 1


def _is_attention(attribute: str) -> bool:
    return ("attn" in attribute or "attention" in attribute) and "norm" not in attribute and "type" not in attribute


def _sums_itself(context: RankContext, real: Any, name: str, file: Path) -> bool | None:
    """Whether the output projection of an attention class reduces its result; None: it does not say."""
    module = getattr(real, "__module__", "") if not isinstance(real, Stub) else ""
    for known, loaded in context.space.modules.items():
        if loaded.__name__ == module and context.space.tiers[known] is Tier.REAL:
            file = context.space.path(known)[0] or file
    return _projection_reduces(file, name)


@functools.lru_cache(maxsize=256)
def _projection_reduces(file: Path, name: str) -> bool | None:
    for node in _parsed(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and getattr(inner.func, "id", "") == "RowParallelLinear":
                    given = {k.arg: k.value for k in inner.keywords}.get("reduce_results")
                    return given.value is not False if isinstance(given, ast.Constant) else given is None
    return None
