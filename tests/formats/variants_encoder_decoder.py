"""Tiny encoder-decoders of `transformers`: every switch of their configurations, values unlike all defaults."""

from typing import Any

_T5: dict[str, Any] = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
_GATED = _T5 | {"feed_forward_proj": "gated-gelu"}
_SWITCH = _T5 | {
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_experts": 5,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
}
_WHISPER: dict[str, Any] = {
    "vocab_size": 64,
    "num_mel_bins": 6,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_source_positions": 20,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
# Two things that `transformers` takes from a file, not from its configuration.
OWN_HEAD = "own head"

# Variant: (class name without ForConditionalGeneration, keys). The first word of a variant is the family.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", _T5),
    "t5 as many decoder layers": ("T5", _T5 | {"num_decoder_layers": None}),
    "t5 published buckets": (
        "T5",
        _T5 | {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    ),
    "t5 few buckets": ("T5", _T5 | {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 9}),
    "t5 exact gelu": ("T5", _T5 | {"feed_forward_proj": "gelu"}),
    "t5 approximate gelu": ("T5", _T5 | {"feed_forward_proj": "gelu_new"}),
    "t5 gated": ("T5", _GATED),
    "t5 gated silu": ("T5", _T5 | {"feed_forward_proj": "gated-silu"}),
    "t5 gated, exact gelu": ("T5", _GATED | {"dense_act_fn": "gelu"}),
    "t5 unscaled": ("T5", _T5 | {"tie_word_embeddings": False}),
    f"t5 unscaled, gated, {OWN_HEAD}": ("T5", _GATED | {"tie_word_embeddings": False}),
    f"t5 scaled, {OWN_HEAD}": ("T5", _T5),
    "switch_transformers": ("SwitchTransformers", _SWITCH),
    "switch_transformers little room": ("SwitchTransformers", _SWITCH | {"expert_capacity": 3}),
    "switch_transformers all layers sparse, router bias": (
        "SwitchTransformers",
        _SWITCH | {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 3, "router_bias": True},
    ),
    "switch_transformers no sparse layers": (
        "SwitchTransformers",
        _SWITCH | {"num_sparse_encoder_layers": 5, "num_sparse_decoder_layers": 4},
    ),
    "switch_transformers zero sparse layers": (
        "SwitchTransformers",
        _SWITCH | {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0},
    ),
    "switch_transformers silu": ("SwitchTransformers", _SWITCH | {"dense_act_fn": "silu", "expert_capacity": 2}),
    "whisper": ("Whisper", _WHISPER),
    "whisper head of its own": ("Whisper", _WHISPER | {"tie_word_embeddings": False}),
    "whisper relu": ("Whisper", _WHISPER | {"activation_function": "relu"}),
    "whisper approximate gelu": ("Whisper", _WHISPER | {"activation_function": "gelu_new"}),
    "whisper a key that does nothing": ("Whisper", _WHISPER | {"scale_embedding": True}),
}
