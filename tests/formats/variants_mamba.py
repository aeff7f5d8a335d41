"""Tiny state-space models of `transformers`: Mamba, Mamba-2, Jamba; values unlike all defaults."""

from typing import Any

from tiny_keys import RMS

BASE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 6,
    "conv_kernel": 3,
    "layer_norm_epsilon": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = BASE | {"time_step_rank": 5}
MAMBA2 = BASE | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 7}
JAMBA = RMS | {
    "num_hidden_layers": 4,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "mamba_d_state": 6,
    "mamba_d_conv": 3,
    "mamba_dt_rank": 5,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", MAMBA),
    "mamba untied": ("Mamba", MAMBA | {"tie_word_embeddings": False}),
    "mamba biases": ("Mamba", MAMBA | {"use_bias": True}),
    "mamba no bias of the convolution": ("Mamba", MAMBA | {"use_conv_bias": False}),
    "mamba automatic rank": ("Mamba", MAMBA | {"hidden_size": 40, "time_step_rank": "auto"}),
    "mamba three times as wide, one tap": ("Mamba", MAMBA | {"expand": 3, "conv_kernel": 1}),
    "mamba exact gelu": ("Mamba", MAMBA | {"hidden_act": "gelu", "residual_in_fp32": False}),
    "mamba2": ("Mamba2", MAMBA2),
    "mamba2 tied, one group": ("Mamba2", MAMBA2 | {"tie_word_embeddings": True, "n_groups": 1}),
    "mamba2 a group for each head": ("Mamba2", MAMBA2 | {"n_groups": 8, "chunk_size": 64}),
    "mamba2 biases": ("Mamba2", MAMBA2 | {"use_bias": True}),
    "mamba2 no bias of the convolution": ("Mamba2", MAMBA2 | {"use_conv_bias": False}),
    "mamba2 limited steps": ("Mamba2", MAMBA2 | {"time_step_limit": [0.2, 0.9]}),
    "mamba2 steps limited from below": ("Mamba2", MAMBA2 | {"time_step_limit": [0.2, float("inf")]}),
    "mamba2 three times as wide": ("Mamba2", MAMBA2 | {"expand": 3, "num_heads": 6, "head_dim": 16}),
    "mamba2 exact gelu": ("Mamba2", MAMBA2 | {"hidden_act": "gelu", "conv_kernel": 5}),
    "jamba": ("Jamba", JAMBA),
    "jamba tied, biases": ("Jamba", JAMBA | {"tie_word_embeddings": True, "mamba_proj_bias": True}),
    "jamba no bias of the convolution": ("Jamba", JAMBA | {"mamba_conv_bias": False, "mamba_expand": 3}),
    "jamba without experts": ("Jamba", JAMBA | {"num_experts": 1, "num_key_value_heads": 1}),
    "jamba without attention": ("Jamba", JAMBA | {"attn_layer_period": 8, "attn_layer_offset": 4}),
    "jamba attention alone": ("Jamba", JAMBA | {"attn_layer_period": 1, "attn_layer_offset": 0}),
    "jamba experts everywhere": (
        "Jamba",
        JAMBA | {"expert_layer_period": 1, "expert_layer_offset": 0, "mamba_dt_rank": "auto"},
    ),
    "jamba exact gelu": ("Jamba", JAMBA | {"hidden_act": "gelu", "num_experts_per_tok": 1}),
}
