"""A small model's configuration that any model file can be built with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

#: Sizes divisible by 8 ranks in every way that a layer is sharded.
HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, HEADS, LAYERS = 64, 32, 8, 2, 8, 2

_VALUES: dict[str, Any] = {
    # sizes
    "hidden_size": HIDDEN, "intermediate_size": 2 * INTERMEDIATE, "moe_intermediate_size": INTERMEDIATE,
    "intermediate_size_mlp": 2 * INTERMEDIATE, "expert_ffn_hidden_size": INTERMEDIATE, "ffn_hidden_size": INTERMEDIATE,
    "shared_expert_intermediate_size": INTERMEDIATE, "moe_shared_expert_intermediate_size": INTERMEDIATE,
    "share_expert_dim": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_layers": LAYERS, "vocab_size": 128,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HIDDEN // HEADS,
    "v_head_dim": HIDDEN // HEADS, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "kv_lora_rank": 16,
    "q_lora_rank": None,
    "max_position_embeddings": 128, "num_attention_groups": HEADS, "share_q_dim": HIDDEN,
    # experts
    "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K, "moe_top_k": TOP_K, "moe_topk": TOP_K, "top_k": TOP_K, "num_experts_per_token": TOP_K,
    "num_shared_experts": 1, "n_shared_experts": 1, "moe_num_shared_experts": 1, "num_shared_expert": 1,
    "norm_topk_prob": True, "norm_expert_weight": True, "router_bias": False, "moe_router_enable_expert_bias": False,
    "n_group": 1, "topk_group": 1, "num_expert_group": 1, "moe_n_group": 1, "moe_topk_group": 1,
    "routed_scaling_factor": 1.5, "moe_router_topk_scaling_factor": 1.5, "router_scaling_factor": 1.5,
    "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "moe_layer_freq": 1, "first_k_dense_replace": 0, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "moe_router_activation_func": "sigmoid", "use_moe_router_bias": True, "need_fp32_gate": False, "swiglu_limit": 7.0,
    "swiglu_limits": [0.0] * LAYERS, "swiglu_limits_shared": [0.0] * LAYERS, "interleave_moe_layer_step": 1,
    # which layers have experts or full attention: all that are built
    "moe_layers_enum": "0,1", "is_moe_layer": [True] * LAYERS, "layer_types": ["full_attention"] * LAYERS,
    "yarn_only_types": ["full_attention"], "hybrid_layer_pattern": [0] * LAYERS, "attention_type": 0,
    "is_moe": True, "mlp_layer_types": ["sparse"] * LAYERS, "num_dense_layers": 0,
    "moe_layer_start_index": 0, "moe_layer_end_index": LAYERS - 1, "moe_layer_interval": 1,
    "num_attention_heads_per_layer": [HEADS] * LAYERS, "partial_rotary_factors": [1.0] * LAYERS,
    "rounter_params_dtype": "float32", "router_dtype": "float32",
    # the rest of a layer
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "layernorm_epsilon": 1e-6, "norm_eps": 1e-6, "layer_norm_epsilon": 1e-6,
    "rope_theta": 10000.0, "rope_scaling": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "partial_rotary_factor": 1.0, "attention_bias": False, "use_bias": False, "use_qkv_bias": False, "qkv_bias": False,
    "attention_dropout": 0.0, "use_qk_norm": False, "sliding_window": 128, "use_rmsnorm": True,
    "tie_word_embeddings": False,
    "quantization_config": None, "architectures": ["Model"], "model_type": "model", "torch_dtype": None,
}  # fmt: skip


#: What a name without a value most likely means, by the words in it; the first pattern that fits.
_GUESSES: tuple[tuple[str, Any], ...] = (
    (r"^(use|is|has|enable|norm|with|need|add|apply|skip|disable)_|_(use|apply)_", False),
    (r"_bias$|_renormalize$|_enabled$|_sink$|_interleaved$|gating$", False),
    (r"^route_norm$", True),
    (r"score_func|scoring", "sigmoid"),
    (r"start_index$", 0),
    (r"end_index$", LAYERS - 1),
    (r"(scal|factor|alpha|beta|multiplier|softcap|logit_cap)", 1.0),
    (r"zero_expert_type", "identity"),
    (r"zero_expert", 0),
    (r"expansion$", HIDDEN),
    (r"^top_?k_|(top_?k|_k|per_tok|per_token)$", TOP_K),
    (r"(num|n)_.*group", 1),
    (r"(num|n)_.*shared.*expert|num_.*shared|shared_expert_num", 1),
    (r"(num|n)_.*expert|expert.*(num|count)$", EXPERTS),
    (r"(intermediate|ffn|moe|expert).*(size|dim)", INTERMEDIATE),
    (r"latent_size|low_rank|lora_rank", None),
    (r"(size|dim)$", HIDDEN),
    (r"(num|n)_.*heads?$", HEADS),
    (r"(num|n)_.*layers?$", LAYERS),
    (r"(act|activation)(_fn|_func)?$", "silu"),
    (r"eps(ilon)?$", 1e-6),
    (r"(freq|interval|step|stride)$", 1),
    (r"(pattern|layers|types|list|indices)$", []),
)


def guess(name: str) -> tuple[bool, Any]:
    """(whether there is a guess, the value) for a configuration name that a constructor asked for."""
    for pattern, value in _GUESSES:
        if re.search(pattern, name):
            return True, list(value) if isinstance(value, list) else value
    return False, None


class Config:
    """Plain attributes. A name without a value raises AttributeError, as in the engines' own configurations."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, dtype: torch.dtype, overrides: dict[str, Any]) -> None:
        self.__dict__.update(_VALUES)
        self.__dict__["torch_dtype"] = self.__dict__["dtype"] = dtype
        self.__dict__.update(overrides)
        self.__dict__["hf_config"] = self.__dict__["hf_text_config"] = self

    def get_text_config(self, *_: Any, **__: Any) -> Config:
        return self

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def get(self, name: str, default: Any = None) -> Any:
        return self.__dict__.get(name, default)
