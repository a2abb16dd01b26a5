"""Builders for the rules' examples: a pretend engine with one model, as small as the rules allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import cleandoc
from textwrap import dedent, indent
from typing import Concatenate, ParamSpec

from msgspec import Struct

from moe_lint.rules.base import Case

FLAGS = "x, should_allreduce_fusion=False, use_reduce_scatter=False"

UTILS = '''\
"""Who sums the experts' output."""

from enum import Enum


class MoeA2ABackend(Enum):
    NONE = "none"
    DEEPEP = "deepep"
    MOONCAKE = "mooncake"
    MORI = "mori"

    def is_none(self):
        return self == MoeA2ABackend.NONE

    def is_deepep(self):
        return self == MoeA2ABackend.DEEPEP

    def is_mooncake(self):
        return self == MoeA2ABackend.MOONCAKE

    def is_mori(self):
        return self == MoeA2ABackend.MORI


def get_moe_a2a_backend():
    return MoeA2ABackend.NONE


def is_deepep_class_backend():
    backend = get_moe_a2a_backend()
    return backend.is_deepep() or backend.is_mooncake() or backend.is_mori()


def should_use_flashinfer_cutlass_moe_fp4_allgather():
    return settings.fp4_allgather


def should_use_dp_reduce_scatterv():
    return get_moe_a2a_backend().is_none() and settings.dp_attention


def should_skip_post_experts_all_reduce(*, is_tp_path, use_reduce_scatter=False, should_allreduce_fusion=False):
    if should_allreduce_fusion or use_reduce_scatter:
        return True
    if should_use_dp_reduce_scatterv():
        return True
    return is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather()
'''

COMMUNICATOR = '''\
"""Who may take the sum off a block."""


class LayerCommunicator:
    def __init__(self, config, allow_reduce_scatter=False, is_last_layer=False):
        self.config = config
        self.allow_reduce_scatter = allow_reduce_scatter
        self.is_last_layer = is_last_layer

    def should_use_reduce_scatter(self, batch):
        return self.allow_reduce_scatter and batch.padded_to_max_len

    def should_fuse_mlp_allreduce_with_next_layer(self, batch):
        return batch.fuse and not self.is_last_layer

    def prepare(self, x, residual):
        if getattr(x, "_sglang_needs_allreduce_fusion", False):
            return self.norm.forward_with_allreduce_fusion(x, residual)
        return self.norm(x, residual)

    def postprocess_layer(self, x, residual, batch):
        return x, residual
'''

_IMPORTS = """\
from engine.distributed import (
    moe_expert_parallel_all_reduce,
    moe_tensor_model_parallel_all_reduce,
    tensor_model_parallel_all_reduce,
)
from engine.layers.communicator import LayerCommunicator
from engine.layers.moe.utils import (
    get_moe_a2a_backend,
    is_deepep_class_backend,
    should_skip_post_experts_all_reduce,
    should_use_dp_reduce_scatterv,
    should_use_flashinfer_cutlass_moe_fp4_allgather,
)
"""


class Written(Struct, frozen=True):
    """A piece of an example, written down when it is read: a run of the tool has no use for examples."""

    write: Callable[[], str]

    def __str__(self) -> str:
        return self.write()

    def __add__(self, other: Piece) -> Written:
        return Written(lambda: f"{self}{other}")

    def __radd__(self, other: str) -> Written:
        return Written(lambda: f"{other}{self}")

    def replace(self, old: str, new: str, count: int = -1) -> Written:
        return Written(lambda: str(self).replace(old, new, count))


Piece = str | Written
_P = ParamSpec("_P")


def later(write: Callable[_P, str]) -> Callable[_P, Written]:
    """The piece that a function writes, not written yet."""

    @wraps(write)
    def piece(*args: _P.args, **kwargs: _P.kwargs) -> Written:
        return Written(lambda: write(*args, **kwargs))

    return piece


def when_read(build: Callable[Concatenate[str, _P], Case]) -> Callable[Concatenate[str, _P], Case]:
    """The case of this name that a function builds, not built yet."""

    @wraps(build)
    def case(name: str, /, *args: _P.args, **kwargs: _P.kwargs) -> Case:
        return Case(name, lambda: build(name, *args, **kwargs).files)

    return case


@later
def method(body: Piece, name: str = "forward", parameters: str = FLAGS) -> str:
    """A method that returns ``x`` after ``body``."""
    return f"def {name}(self, {parameters}):\n{indent(cleandoc(str(body)), '    ')}\n    return x\n"


@later
def experts(body: str, name: str = "forward", parameters: str = FLAGS) -> str:
    """A method in which ``x`` is the experts' output when ``body`` starts."""
    return str(method(f"x = self.experts(x)\n{cleandoc(body)}", name, parameters))


@later
def model(*methods: Piece, absorber: bool = True, layer: str = "x = self.mlp(x)") -> str:
    """A model file: a block with these methods, and the decoder layer that builds it and runs ``layer``."""
    builds = "self.mlp = Block(config)"
    if absorber:
        builds += "\nself.layer_communicator = LayerCommunicator(config)"
    init = f"def __init__(self, config):\n{indent(builds, '    ')}\n"
    block = indent("\n".join(map(str, methods)), "    ")
    decoder = indent(f"{init}\n{method(layer)}", "    ")
    return f"{_IMPORTS}\n\nclass Block:\n{block}\n\nclass DecoderLayer:\n{decoder}"


def case(name: str, *methods: Piece, absorber: bool = True, layer: str = "x = self.mlp(x)") -> Case:
    """A tree with one model."""
    return tree(name, pretend=model(*methods, absorber=absorber, layer=layer))


#: A layer without sums of its own: the call of its block, and what it does then.
CALL = "x = self.mlp(x, should_allreduce_fusion, use_reduce_scatter)"
POST = "\nx, residual = self.layer_communicator.postprocess_layer(x, residual, batch)\n"
ASK = """
should_allreduce_fusion = self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch)
use_reduce_scatter = self.layer_communicator.should_use_reduce_scatter(batch)
"""
SETTLE = """
if should_allreduce_fusion:
    x._sglang_needs_allreduce_fusion = True
else:
    x, residual = self.layer_communicator.postprocess_layer(x, residual, batch)
"""
#: A dense layer that sums unless it is told not to, when built or when called.
LINEAR = """
class Linear:
    def __init__(self, size, reduce_results=True):
        self.reduce_results = reduce_results

    def forward(self, x, skip_all_reduce=False):
        if self.reduce_results and self.tp_size > 1 and not skip_all_reduce:
            x = tensor_model_parallel_all_reduce(x)
        return x
"""
#: A block that leaves the sum to the layer around it whenever that asks for it.
ROUTED = """
if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
    is_tp_path=True,
    use_reduce_scatter=use_reduce_scatter,
    should_allreduce_fusion=should_allreduce_fusion,
):
    x = tensor_model_parallel_all_reduce(x)
"""
#: The same where experts and their parts lie on ranks of different groups.
PAIR = """
if self.ep_size > 1 and not should_skip_post_experts_all_reduce(
    is_tp_path=False,
    use_reduce_scatter=use_reduce_scatter,
    should_allreduce_fusion=should_allreduce_fusion,
):
    x = moe_expert_parallel_all_reduce(x)
if self.tp_size > 1 and not should_skip_post_experts_all_reduce(
    is_tp_path=True,
    use_reduce_scatter=use_reduce_scatter,
    should_allreduce_fusion=should_allreduce_fusion,
):
    x = moe_tensor_model_parallel_all_reduce(x)
"""
BARE = """
if self.tp_size > 1:
    x = tensor_model_parallel_all_reduce(x)
"""
FUSION_ONLY = """
if self.tp_size > 1 and not should_allreduce_fusion:
    x = tensor_model_parallel_all_reduce(x)
"""
COMMUNICATOR_CALL = (
    "LayerCommunicator(config, allow_reduce_scatter=True, is_last_layer=layer_id == config.num_hidden_layers - 1)"
)


@later
def layer_model(
    *blocks: Piece, build: str = "self.mlp = Block(config)", communicator: str = COMMUNICATOR_CALL, layer: str
) -> str:
    """A model file: classes as written, and the decoder layer that builds ``build`` and runs ``layer``.

    ``layer`` starts with ``x``, ``residual`` and ``batch`` at hand.
    """
    init = f"{cleandoc(build)}\nself.layer_communicator = {communicator}"
    head = f"def __init__(self, config, layer_id):\n{indent(init, '    ')}\n"
    run = f"def forward(self, x, residual, batch):\n{indent(cleandoc(layer), '    ')}\n    return x, residual\n"
    decoder = indent(f"{head}\n{run}", "    ")
    classes = "\n\n".join(dedent(str(block)).strip() + "\n" for block in blocks)
    return f"{_IMPORTS}\n\n{classes}\n\nclass DecoderLayer:\n{decoder}"


@later
def block(*methods: Piece, name: str = "Block", init: str = "self.experts = FusedMoE(config)") -> str:
    """A class with a constructor and these methods."""
    head = f"def __init__(self, config):\n{indent(cleandoc(init), '    ')}\n"
    return f"class {name}:\n{indent(chr(10).join((head, *(dedent(str(m)) for m in methods))), '    ')}"


def tree(name: str, utils: Piece = UTILS, layers: Piece = COMMUNICATOR, **models: Piece) -> Case:
    """A tree with these model files."""
    files = {
        "engine/layers/moe/utils.py": utils,
        "engine/layers/communicator.py": layers,
        **{f"engine/models/{stem}.py": text for stem, text in models.items()},
    }
    return Case(name, lambda: {path: str(text) for path, text in files.items()})


def layer_case(name: str, *blocks: Piece, **parts: str) -> Case:
    """A tree with one such model."""
    return tree(name, pretend=layer_model(*blocks, **parts))
