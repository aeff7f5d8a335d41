"""Variants of DeepSeek-V3."""

from typing import Any

from tiny_keys import RMS, rotary

BASE: dict[str, Any] = (
    RMS
    | rotary()
    | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 6,
        "v_head_dim": 12,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 20,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.7,
    }
)
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 300.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": ("DeepseekV3", BASE),
    "deepseek_v3 queries without a rank": ("DeepseekV3", BASE | {"q_lora_rank": None}),
    "deepseek_v3 biases, tied": ("DeepseekV3", BASE | {"attention_bias": True, "tie_word_embeddings": True}),
    "deepseek_v3 halves": ("DeepseekV3", BASE | {"rope_interleave": False}),
    "deepseek_v3 yarn": ("DeepseekV3", BASE | {"rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 0.5}}),
    "deepseek_v3 yarn as published": (
        "DeepseekV3",
        BASE | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek_v3 yarn without scales": ("DeepseekV3", BASE | {"rope_parameters": YARN}),
    "deepseek_v3 one group, not normalised": (
        "DeepseekV3",
        BASE | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 2},
    ),
    "deepseek_v3 experts everywhere": (
        "DeepseekV3",
        BASE | {"first_k_dense_replace": 0, "n_group": 2, "topk_group": 1},
    ),
    "deepseek_v3 dense": ("DeepseekV3", BASE | {"first_k_dense_replace": 3}),
}
