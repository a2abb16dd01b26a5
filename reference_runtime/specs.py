"""What discovery cannot see in a model file. Most models need no line here.

Keyed by the name of the block's class, not by file or release: forks rename files, rarely classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """Help for one block class.

    Attributes:
        config: configuration values that differ from the common ones.
        ignore: the class is no block of its own (abstract, or a part of one).
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    ignore: bool = False


def _full_attention(layer: int) -> bool:
    """Asked whether a layer has linear attention."""
    return False


SPECS: dict[str, Spec] = {
    "Llama4MoE": Spec(config={"num_experts_per_tok": 1}),  # one expert per token, scaled on its input
    "Step3p5MoEMLP": Spec(config={"rope_theta": [10000.0] * 8, "partial_rotary_factors": [1.0] * 8}),  # one per layer
    "HYV3MoEFused": Spec(config={"route_norm": True}),
    "MiMoV2MoE": Spec(config={"moe_layer_freq": [1] * 8}),  # a list, elsewhere a period
    "Ernie4_5_VLMoeMoE": Spec(
        config={
            "moe_num_experts": [8, 8],
            "moe_intermediate_size": [32, 32],
            "moe_layer_start_index": [0, 0],
            "moe_layer_end_index": [7, 7],
        }
    ),
    "MiniMaxM3MoE": Spec(config={"moe_layer_freq": [1] * 8}),
    "Gemma4MoE": Spec(config={"hidden_activation": "gelu_pytorch_tanh", "enable_moe_block": True}),
    "KimiMoE": Spec(config={"is_kda_layer": _full_attention}),
    "KimiK3MoE": Spec(config={"is_kda_layer": _full_attention}),
    "LLaDA2MoeSparseMoeBlock": Spec(config={"score_function": "sigmoid", "moe_router_enable_expert_bias": True}),
    "ZayaBlock": Spec(config={"activation_func": "swiglu", "gated_linear_unit": True, "zaya_use_mod": False}),
    "TransformersFusedMoE": Spec(ignore=True),  # the experts of any Hugging Face model, not a block
}
_DEFAULT = Spec()


def spec_of(block: str) -> Spec:
    """The help for a block class; an empty one for most."""
    return SPECS.get(block, _DEFAULT)
