"""Tiny models of GPT-2, GPT-J, GPT-NeoX, OPT and Falcon, with values that differ from all defaults."""

from typing import Any

_TOKENS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT: dict[str, Any] = _TOKENS | {
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 48,
    "n_layer": 3,
    "n_positions": 40,
    "layer_norm_epsilon": 1e-3,
}
_SIZES: dict[str, Any] = _TOKENS | {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}
_GPTJ = _GPT | {"rotary_dim": 4}
_NEOX = _SIZES | {"intermediate_size": 48, "layer_norm_eps": 1e-3}
_OPT = _SIZES | {"ffn_dim": 48}
_FALCON = _SIZES | {"ffn_hidden_size": 48, "layer_norm_epsilon": 1e-3}
_GROUPED = _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
_ALIBI = _FALCON | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}


def _rotary(kind: str = "default", **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 300.0, **values}}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT),
    "gpt2 inner width left out": ("GPT2", _GPT | {"n_inner": None}),
    "gpt2 head of its own": ("GPT2", _GPT | {"tie_word_embeddings": False}),
    "gpt2 exact gelu": ("GPT2", _GPT | {"activation_function": "gelu"}),
    "gpt2 unscaled": ("GPT2", _GPT | {"scale_attn_weights": False}),
    "gpt2 scaled by layer": ("GPT2", _GPT | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 scaled by layer alone": (
        "GPT2",
        _GPT | {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gptj": ("GPTJ", _GPTJ),
    "gptj tied": ("GPTJ", _GPTJ | {"tie_word_embeddings": True}),
    "gptj all of a head": ("GPTJ", _GPTJ | {"rotary_dim": 8, "n_inner": None, "activation_function": "relu"}),
    "gpt_neox": ("GPTNeoX", _NEOX | _rotary(partial_rotary_factor=0.5)),
    "gpt_neox default part of a head": ("GPTNeoX", _NEOX),
    "gpt_neox all of a head": ("GPTNeoX", _NEOX | _rotary(partial_rotary_factor=1.0)),
    "gpt_neox linear": ("GPTNeoX", _NEOX | _rotary("linear", factor=3.0, partial_rotary_factor=0.5)),
    "gpt_neox in sequence": ("GPTNeoX", _NEOX | _rotary() | {"use_parallel_residual": False}),
    "gpt_neox tied, fewer biases": (
        "GPTNeoX",
        _NEOX | _rotary() | {"tie_word_embeddings": True, "attention_bias": False},
    ),
    "gpt_neox approximate gelu": ("GPTNeoX", _NEOX | _rotary() | {"hidden_act": "gelu_fast"}),
    "opt": ("OPT", _OPT),
    "opt head of its own": ("OPT", _OPT | {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "opt no biases": ("OPT", _OPT | {"enable_bias": False}),
    "opt norms without weights": ("OPT", _OPT | {"layer_norm_elementwise_affine": False}),
    "opt no final norm": ("OPT", _OPT | {"_remove_final_layer_norm": True}),
    "opt norms after": ("OPT", _OPT | {"do_layer_norm_before": False}),
    "opt narrow embedding": ("OPT", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "opt narrow embedding, head of its own": ("OPT", _OPT | {"word_embed_proj_dim": 20, "tie_word_embeddings": False}),
    "falcon": ("Falcon", _FALCON | _rotary()),
    "falcon head of its own": ("Falcon", _FALCON | _rotary() | {"tie_word_embeddings": False}),
    "falcon biases": ("Falcon", _FALCON | _rotary("linear", factor=3.0) | {"bias": True, "activation": "gelu_new"}),
    "falcon all kv heads": ("Falcon", _FALCON | _rotary() | {"multi_query": False}),
    "falcon in sequence": ("Falcon", _FALCON | _rotary() | {"parallel_attn": False, "ffn_hidden_size": None}),
    "falcon grouped": ("Falcon", _GROUPED | _rotary()),
    "falcon grouped, biases": ("Falcon", _GROUPED | _rotary() | {"bias": True}),
    "falcon grouped, one norm": ("Falcon", _GROUPED | _rotary() | {"num_ln_in_parallel_attn": 1}),
    "falcon grouped, one kv head": ("Falcon", _GROUPED | _rotary() | {"num_kv_heads": 1}),
    "falcon grouped, all kv heads": ("Falcon", _GROUPED | _rotary() | {"num_kv_heads": 4}),
    "falcon alibi": ("Falcon", _ALIBI),
    "falcon alibi, six heads": ("Falcon", _ALIBI | {"hidden_size": 36, "num_attention_heads": 6}),
    "falcon alibi, one kv head": ("Falcon", _ALIBI | {"multi_query": True, "parallel_attn": True}),
    "falcon alibi, grouped": ("Falcon", _GROUPED | {"alibi": True}),
}
