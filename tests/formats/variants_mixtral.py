"""Tiny decoders with experts of `transformers`: every switch of their configurations, values unlike all defaults."""

from typing import Any

from tiny_keys import RMS, rotary

BASE = RMS | rotary() | {"num_experts_per_tok": 2}
YARN: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    }
}
TIED = {"tie_word_embeddings": True}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8}

MIXTRAL = BASE | {"num_local_experts": 5}
QWEN2_MOE = BASE | {"num_experts": 5, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28}
QWEN3_MOE = BASE | {"num_experts": 5, "moe_intermediate_size": 20, "head_dim": 12}
OLMOE = BASE | {"num_experts": 5}
GPT_OSS = BASE | {
    "num_local_experts": 5,
    "head_dim": 12,
    "sliding_window": 8,
    "swiglu_alpha": 1.3,
    "swiglu_limit": 1.1,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", MIXTRAL),
    "mixtral tied": ("Mixtral", MIXTRAL | TIED),
    "mixtral one kv head": ("Mixtral", MIXTRAL | {"num_key_value_heads": 1}),
    "mixtral wide heads, window": ("Mixtral", MIXTRAL | {"head_dim": 12, "sliding_window": 8}),
    "mixtral window longer than the text": ("Mixtral", MIXTRAL | {"sliding_window": 50}),
    "mixtral one expert per token": ("Mixtral", MIXTRAL | {"num_experts_per_tok": 1}),
    "mixtral all experts": ("Mixtral", MIXTRAL | {"num_experts_per_tok": 5}),
    "mixtral more experts than tokens": ("Mixtral", MIXTRAL | {"num_local_experts": 64}),
    "mixtral exact gelu": ("Mixtral", MIXTRAL | {"hidden_act": "gelu"}),
    "mixtral yarn": ("Mixtral", MIXTRAL | YARN | {"head_dim": 12}),
    "qwen2_moe": ("Qwen2Moe", QWEN2_MOE),
    "qwen2_moe tied, normalised": ("Qwen2Moe", QWEN2_MOE | TIED | {"norm_topk_prob": True}),
    "qwen2_moe no biases": ("Qwen2Moe", QWEN2_MOE | {"qkv_bias": False, "num_key_value_heads": 1}),
    "qwen2_moe some layers dense": ("Qwen2Moe", QWEN2_MOE | {"num_hidden_layers": 3, "mlp_only_layers": [0, 2]}),
    "qwen2_moe every second layer sparse": ("Qwen2Moe", QWEN2_MOE | {"num_hidden_layers": 3, "decoder_sparse_step": 2}),
    "qwen2_moe windows": ("Qwen2Moe", QWEN2_MOE | WINDOWS | {"num_hidden_layers": 4, "max_window_layers": 2}),
    "qwen2_moe chosen windows": (
        "Qwen2Moe",
        QWEN2_MOE | WINDOWS | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen3_moe": ("Qwen3Moe", QWEN3_MOE),
    "qwen3_moe tied, normalised": ("Qwen3Moe", QWEN3_MOE | TIED | {"norm_topk_prob": True}),
    "qwen3_moe biases, windows": ("Qwen3Moe", QWEN3_MOE | WINDOWS | {"attention_bias": True, "num_key_value_heads": 1}),
    "qwen3_moe window longer than the text": ("Qwen3Moe", QWEN3_MOE | WINDOWS | {"sliding_window": 50}),
    "qwen3_moe some layers dense": (
        "Qwen3Moe",
        QWEN3_MOE | {"num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2},
    ),
    "olmoe": ("Olmoe", OLMOE),
    "olmoe tied, normalised": ("Olmoe", OLMOE | TIED | {"norm_topk_prob": True, "num_key_value_heads": 1}),
    "olmoe clipped": ("Olmoe", OLMOE | {"clip_qkv": 0.7}),
    "olmoe biases": ("Olmoe", OLMOE | {"attention_bias": True, "num_key_value_heads": 4}),
    "gpt_oss": ("GptOss", GPT_OSS | YARN),
    "gpt_oss default scaling": ("GptOss", {k: v for k, v in GPT_OSS.items() if k != "rope_parameters"}),
    "gpt_oss no scaling, tied": ("GptOss", GPT_OSS | TIED | {"num_key_value_heads": 1}),
    "gpt_oss no biases": ("GptOss", GPT_OSS | YARN | {"attention_bias": False}),
    "gpt_oss default gates": ("GptOss", GPT_OSS | YARN | {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}),
    "gpt_oss other windows": (
        "GptOss",
        GPT_OSS | {"layer_types": ["full_attention", "full_attention", "sliding_attention"], "num_hidden_layers": 3},
    ),
    "gpt_oss windows longer than the text": ("GptOss", GPT_OSS | {"sliding_window": 50}),
}
