"""Builders for the rules' examples: a pretend engine with one model, as small as the rules allow."""

from __future__ import annotations

from inspect import cleandoc
from textwrap import indent

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
    def __init__(self, config):
        self.config = config
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


def method(body: str, name: str = "forward", parameters: str = FLAGS) -> str:
    """A method that returns ``x`` after ``body``."""
    return f"def {name}(self, {parameters}):\n{indent(cleandoc(body), '    ')}\n    return x\n"


def experts(body: str, name: str = "forward", parameters: str = FLAGS) -> str:
    """A method in which ``x`` is the experts' output when ``body`` starts."""
    return method(f"x = self.experts(x)\n{cleandoc(body)}", name, parameters)


def model(*methods: str, absorber: bool = True, layer: str = "x = self.mlp(x)") -> str:
    """A model file: a block with these methods, and the decoder layer that builds it and runs ``layer``."""
    builds = "self.mlp = Block(config)"
    if absorber:
        builds += "\nself.layer_communicator = LayerCommunicator(config)"
    init = f"def __init__(self, config):\n{indent(builds, '    ')}\n"
    block = indent("\n".join(methods), "    ")
    decoder = indent(f"{init}\n{method(layer)}", "    ")
    return f"{_IMPORTS}\n\nclass Block:\n{block}\n\nclass DecoderLayer:\n{decoder}"


def case(name: str, *methods: str, absorber: bool = True, layer: str = "x = self.mlp(x)") -> Case:
    """A tree with one model."""
    return Case(
        name,
        {
            "engine/layers/moe/utils.py": UTILS,
            "engine/layers/communicator.py": COMMUNICATOR,
            "engine/models/pretend.py": model(*methods, absorber=absorber, layer=layer),
        },
    )
