"""Writes small pretend engines for the tests: one mixture-of-experts block, its decoder layer, and a policy module."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent, indent

HELPER_NAME = "should_skip_post_experts_all_reduce"

_PREDICATES = """\
from __future__ import annotations

from enum import Enum


class MoeA2ABackend(Enum):
    NONE = "none"
    ALPHA = "alpha"
    BETA = "beta"

    def is_none(self):
        return self == MoeA2ABackend.NONE

    def is_alpha(self):
        return self == MoeA2ABackend.ALPHA

    def is_beta(self):
        return self == MoeA2ABackend.BETA


_BACKEND = MoeA2ABackend.NONE
_FP4_GATHER = False
_DP_SCATTER = False


def get_moe_a2a_backend():
    return _BACKEND


def should_use_flashinfer_cutlass_moe_fp4_allgather():
    return _FP4_GATHER and get_moe_a2a_backend().is_none()


def should_use_dp_reduce_scatterv():
    return _DP_SCATTER and get_moe_a2a_backend().is_none()
"""

_HELPER = f'''

def {HELPER_NAME}(
    *,
    is_tp_path: bool,
    use_reduce_scatter: bool = False,
    should_allreduce_fusion: bool = False,
) -> bool:
    """Whether somebody downstream sums what the experts leave."""
    if use_reduce_scatter or should_allreduce_fusion:
        return True
    if should_use_dp_reduce_scatterv():
        return True
    if is_tp_path and should_use_flashinfer_cutlass_moe_fp4_allgather():
        return True
    return False
'''

_WRAPPER = f"""

def reduce_moe_output(
    x, *, use_reduce_scatter: bool = False, should_allreduce_fusion: bool = False
):
    if get_tp_world_size() > 1 and not {HELPER_NAME}(
        is_tp_path=True,
        use_reduce_scatter=use_reduce_scatter,
        should_allreduce_fusion=should_allreduce_fusion,
    ):
        x = tensor_model_parallel_all_reduce(x)
    return x
"""

_COMMUNICATOR = """\
class LayerCommunicator:
    def should_fuse_mlp_allreduce_with_next_layer(self, batch):
        return batch.fuse

    def should_use_reduce_scatter(self, batch):
        return batch.scatter
"""

_DISTRIBUTED = """\
def get_tp_world_size():
    return 2


def tensor_model_parallel_all_reduce(x):
    return x


def moe_expert_parallel_all_reduce(x):
    return x
"""

#: Names that the models import from `engine.layers.moe`, in isort's order.
NAMES = (
    "get_moe_a2a_backend",
    "should_use_dp_reduce_scatterv",
    "should_use_flashinfer_cutlass_moe_fp4_allgather",
)

FLAGS = "use_reduce_scatter=False, should_allreduce_fusion=False"

#: A hand-written guard that forgets two of the reasons.
FORGETFUL = """\
if self.tp_size > 1 and not use_reduce_scatter and not should_allreduce_fusion:
    x = tensor_model_parallel_all_reduce(x)
"""

#: A hand-written guard that decides just like the helper.
COMPLETE = """\
if (
    self.tp_size > 1
    and not use_reduce_scatter
    and not should_allreduce_fusion
    and not should_use_dp_reduce_scatterv()
    and not should_use_flashinfer_cutlass_moe_fp4_allgather()
):
    x = tensor_model_parallel_all_reduce(x)
"""

#: Already as it should be.
ROUTED = f"""\
if self.tp_size > 1 and not {HELPER_NAME}(
    is_tp_path=True,
    use_reduce_scatter=use_reduce_scatter,
    should_allreduce_fusion=should_allreduce_fusion,
):
    x = tensor_model_parallel_all_reduce(x)
"""


def model(guard: str, *, moe: tuple[str, ...] = NAMES, absorber: bool = True, flags: str = FLAGS) -> str:
    """The text of a model file: a block whose `forward` reduces as ``guard`` says, and a decoder layer around it."""
    lines = [
        "from __future__ import annotations",
        "",
        "from engine.distributed import (",
        "    get_tp_world_size,",
        "    moe_expert_parallel_all_reduce,",
        "    tensor_model_parallel_all_reduce,",
        ")",
    ]
    if absorber:
        lines.append("from engine.layers.communicator import LayerCommunicator")
    if moe:
        lines.append(f"from engine.layers.moe import ({','.join(f'{chr(10)}    {name}' for name in moe)},\n)")
    head = "\n".join(lines)
    block = f"""


class XSparseMoeBlock:
    def __init__(self, experts, config):
        self.tp_size = get_tp_world_size()
        self.ep_size = config.ep_size
        self.experts = experts

    def forward(self, {", ".join(part for part in ("x", flags) if part)}):
        x = self.experts(x)
{indent(dedent(guard), "        ")}        return x
"""
    communicator = "LayerCommunicator()" if absorber else "None"
    body = (
        """
        fuse = self.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch)
        scatter = self.layer_communicator.should_use_reduce_scatter(batch)
        return self.mlp(x, use_reduce_scatter=scatter, should_allreduce_fusion=fuse)
"""
        if absorber and flags
        else """
        return self.mlp(x)
"""
    )
    decoder = f"""

class XDecoderLayer:
    def __init__(self, experts, config):
        self.mlp = XSparseMoeBlock(experts, config)
        self.layer_communicator = {communicator}

    def forward(self, x, batch):{body}"""
    return head + block + decoder


def write_tree(
    folder: Path,
    guard: str = FORGETFUL,
    *,
    helper: bool = True,
    wrapper: bool = False,
    absorber: bool = True,
    flags: str = FLAGS,
) -> Path:
    """A whole pretend engine below ``folder``; returns `engine/`."""
    root = folder / "engine"
    utils = _PREDICATES + (_HELPER if helper else "") + (_WRAPPER if wrapper else "")
    if wrapper:
        utils = utils.replace(
            "from enum import Enum\n",
            "from enum import Enum\n\n"
            "from engine.distributed import get_tp_world_size, tensor_model_parallel_all_reduce\n",
        )
    exported = ["MoeA2ABackend", *NAMES]
    if wrapper:
        exported.insert(2, "reduce_moe_output")
    if helper:
        exported.insert(-2, HELPER_NAME)
    files = {
        "__init__.py": "",
        "distributed.py": _DISTRIBUTED,
        "layers/__init__.py": "",
        "layers/communicator.py": _COMMUNICATOR,
        "layers/moe/__init__.py": "from engine.layers.moe.utils import (\n"
        + "".join(f"    {name},\n" for name in exported)
        + ")\n\n__all__ = [\n"
        + "".join(f'    "{name}",\n' for name in exported)
        + "]\n",
        "layers/moe/utils.py": utils,
        "models/__init__.py": "",
        "models/x.py": model(guard, absorber=absorber, flags=flags),
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
