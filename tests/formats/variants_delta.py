"""Tiny models of `transformers` with the delta rule or short convolutions: every switch, values unlike all defaults."""

from typing import Any

from tiny_keys import DECODER, RMS, rotary

TIED = {"tie_word_embeddings": True}
QWEN3_NEXT = (
    RMS
    | rotary()
    | {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_value_head_dim": 5,
        "moe_intermediate_size": 20,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 28,
    }
)
DENSE = QWEN3_NEXT | {"mlp_only_layers": [0, 1]}
LFM2 = DECODER | rotary() | {"norm_eps": 1e-3, "conv_L_cache": 4, "layer_types": ["conv", "full_attention"]}
LFM2_AS_IT_IS = LFM2 | {"block_auto_adjust_ff_dim": False}
LFM2_MOE = LFM2 | {
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "moe_intermediate_size": 20,
    "num_dense_layers": 1,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.7,
}


def _without(keys: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in keys.items() if name not in names}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3Next", QWEN3_NEXT),
    "qwen3_next layers by the interval": (
        "Qwen3Next",
        _without(DENSE, "layer_types") | {"num_hidden_layers": 4, "mlp_only_layers": [0, 1, 2, 3]},
    ),
    "qwen3_next tied, not normalised": ("Qwen3Next", QWEN3_NEXT | TIED | {"norm_topk_prob": False}),
    "qwen3_next biases, one kv head": ("Qwen3Next", DENSE | {"attention_bias": True, "num_key_value_heads": 1}),
    "qwen3_next half of each head rotated": ("Qwen3Next", DENSE | rotary(partial_rotary_factor=0.5)),
    "qwen3_next whole heads rotated": ("Qwen3Next", DENSE | rotary(partial_rotary_factor=1.0)),
    "qwen3_next yarn": (
        "Qwen3Next",
        DENSE | rotary("yarn", factor=4.0, original_max_position_embeddings=16, partial_rotary_factor=0.5),
    ),
    "qwen3_next as many keys as values": (
        "Qwen3Next",
        DENSE | {"linear_num_value_heads": 2, "linear_value_head_dim": 6, "linear_conv_kernel_dim": 4},
    ),
    "qwen3_next one key head, wide values": (
        "Qwen3Next",
        DENSE | {"linear_num_key_heads": 1, "linear_num_value_heads": 3, "linear_value_head_dim": 9},
    ),
    "qwen3_next exact gelu": ("Qwen3Next", QWEN3_NEXT | {"hidden_act": "gelu"}),
    "qwen3_next some layers dense": (
        "Qwen3Next",
        QWEN3_NEXT
        | {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "mlp_only_layers": [1],
            "decoder_sparse_step": 2,
        },
    ),
    "qwen3_next no attention": ("Qwen3Next", DENSE | {"layer_types": ["linear_attention"] * 2}),
    "qwen3_next attention alone": ("Qwen3Next", DENSE | {"layer_types": ["full_attention"] * 2}),
    "lfm2": ("Lfm2", LFM2_AS_IT_IS),
    "lfm2 untied": ("Lfm2", LFM2_AS_IT_IS | {"tie_word_embeddings": False}),
    "lfm2 default kernel, biases": ("Lfm2", _without(LFM2_AS_IT_IS, "conv_L_cache") | {"conv_bias": True}),
    "lfm2 kernel of one token": ("Lfm2", LFM2_AS_IT_IS | {"conv_L_cache": 1}),
    "lfm2 adjusted width": ("Lfm2", LFM2 | {"block_multiple_of": 24}),
    "lfm2 adjusted width, a factor": ("Lfm2", LFM2 | {"block_multiple_of": 7, "block_ffn_dim_multiplier": 1.3}),
    "lfm2 default width": ("Lfm2", LFM2 | {"block_ff_dim": 60}),
    "lfm2 chosen layers": (
        "Lfm2",
        _without(LFM2_AS_IT_IS, "layer_types") | {"num_hidden_layers": 3, "full_attn_idxs": [0, 2]},
    ),
    "lfm2 attention alone, one kv head": (
        "Lfm2",
        _without(LFM2_AS_IT_IS, "layer_types") | {"num_key_value_heads": 1},
    ),
    "lfm2 no attention": ("Lfm2", LFM2_AS_IT_IS | {"layer_types": ["conv"] * 2}),
    "lfm2 wide heads": ("Lfm2", LFM2_AS_IT_IS | {"head_dim": 12, "num_key_value_heads": 4}),
    "lfm2 yarn": ("Lfm2", LFM2_AS_IT_IS | rotary("yarn", factor=4.0, original_max_position_embeddings=16)),
    "lfm2_moe": ("Lfm2Moe", LFM2_MOE),
    "lfm2_moe no correction, not normalised, biases": (
        "Lfm2Moe",
        LFM2_MOE | {"use_expert_bias": False, "norm_topk_prob": False, "conv_bias": True},
    ),
    "lfm2_moe experts everywhere, untied": (
        "Lfm2Moe",
        LFM2_MOE | {"num_dense_layers": 0, "tie_word_embeddings": False},
    ),
    "lfm2_moe no experts": ("Lfm2Moe", LFM2_MOE | {"num_dense_layers": 3}),
}
