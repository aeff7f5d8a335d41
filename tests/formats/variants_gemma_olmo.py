"""Tiny Gemmas and OLMos of `transformers`: every switch of their configurations, values unlike all defaults."""

from typing import Any

from tiny_keys import RMS, rotary

YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

GEMMA = RMS | rotary() | {"head_dim": 12}
GEMMA2 = GEMMA | {
    "query_pre_attn_scalar": 7,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
    "sliding_window": 8,
}


def by_kind(full: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` with a table for each kind of layer."""
    default = {"rope_type": "default"}
    return {"rope_parameters": {"full_attention": default | full, "sliding_attention": default | sliding}}


def layers(kinds: str) -> dict[str, Any]:
    """A layer with a window for each w, one without for each f."""
    names = {"w": "sliding_attention", "f": "full_attention"}
    return {"num_hidden_layers": len(kinds), "layer_types": [names[kind] for kind in kinds]}


GEMMA3 = (
    RMS
    | by_kind({"rope_theta": 300.0}, {"rope_theta": 40.0})
    | layers("wfw")
    | {"head_dim": 12, "query_pre_attn_scalar": 7, "sliding_window": 8}
)
OLMO2 = RMS | rotary()
OLMO3 = RMS | by_kind({"rope_theta": 300.0}, {"rope_theta": 300.0}) | {"sliding_window": 8, "num_hidden_layers": 4}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", GEMMA),
    "gemma untied": ("Gemma", GEMMA | {"tie_word_embeddings": False}),
    "gemma one kv head": ("Gemma", GEMMA | {"num_key_value_heads": 1}),
    "gemma all kv heads": ("Gemma", GEMMA | {"num_key_value_heads": 4}),
    "gemma biases": ("Gemma", GEMMA | {"attention_bias": True}),
    "gemma old name of its activation": ("Gemma", GEMMA | {"hidden_act": "gelu"}),
    "gemma other activation": ("Gemma", GEMMA | {"hidden_act": "relu"}),
    "gemma other width": ("Gemma", GEMMA | {"hidden_size": 40}),
    "gemma linear": ("Gemma", GEMMA | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0}}),
    "gemma2": ("Gemma2", GEMMA2),
    "gemma2 untied, biases": ("Gemma2", GEMMA2 | {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma2 one kv head": ("Gemma2", GEMMA2 | {"num_key_value_heads": 1, "query_pre_attn_scalar": 144}),
    "gemma2 no softcaps": ("Gemma2", GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2 scores capped alone": ("Gemma2", GEMMA2 | {"final_logit_softcapping": None}),
    "gemma2 window longer than the text": ("Gemma2", GEMMA2 | {"sliding_window": 50}),
    "gemma2 chosen layers": ("Gemma2", GEMMA2 | layers("fww")),
    "gemma2 no windows": ("Gemma2", GEMMA2 | layers("ff")),
    "gemma2 exact gelu": ("Gemma2", GEMMA2 | {"hidden_activation": "gelu"}),
    "gemma2 yarn": ("Gemma2", GEMMA2 | {"rope_parameters": YARN | {"rope_theta": 300.0}}),
    "gemma3_text": ("Gemma3Text", GEMMA3),
    "gemma3_text untied, biases": ("Gemma3Text", GEMMA3 | {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma3_text one kv head": ("Gemma3Text", GEMMA3 | {"num_key_value_heads": 1}),
    "gemma3_text softcap": ("Gemma3Text", GEMMA3 | {"final_logit_softcapping": 5.0}),
    "gemma3_text window longer than the text": ("Gemma3Text", GEMMA3 | {"sliding_window": 50}),
    "gemma3_text pattern": (
        "Gemma3Text",
        GEMMA3 | {"num_hidden_layers": 5, "layer_types": None, "sliding_window_pattern": 2},
    ),
    "gemma3_text pattern of its own": ("Gemma3Text", GEMMA3 | {"num_hidden_layers": 7, "layer_types": None}),
    "gemma3_text windows alone": ("Gemma3Text", GEMMA3 | layers("ww")),
    "gemma3_text no windows": ("Gemma3Text", GEMMA3 | layers("ff")),
    "gemma3_text exact gelu": ("Gemma3Text", GEMMA3 | {"hidden_activation": "gelu"}),
    "gemma3_text linear": (
        "Gemma3Text",
        GEMMA3 | by_kind({"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0}, {"rope_theta": 40.0}),
    ),
    "gemma3_text both kinds stretched": (
        "Gemma3Text",
        GEMMA3 | by_kind(YARN | {"rope_theta": 300.0}, {"rope_type": "linear", "factor": 3.0, "rope_theta": 40.0}),
    ),
    "olmo2": ("Olmo2", OLMO2),
    "olmo2 tied": ("Olmo2", OLMO2 | {"tie_word_embeddings": True}),
    "olmo2 one kv head": ("Olmo2", OLMO2 | {"num_key_value_heads": 1}),
    "olmo2 all kv heads": ("Olmo2", OLMO2 | {"num_key_value_heads": None}),
    "olmo2 wide heads": ("Olmo2", OLMO2 | {"head_dim": 12}),
    "olmo2 biases": ("Olmo2", OLMO2 | {"attention_bias": True}),
    "olmo2 exact gelu": ("Olmo2", OLMO2 | {"hidden_act": "gelu"}),
    "olmo2 yarn": ("Olmo2", OLMO2 | {"rope_parameters": YARN | {"rope_theta": 300.0}}),
    "olmo3": ("Olmo3", OLMO3),
    "olmo3 tied, biases": ("Olmo3", OLMO3 | {"tie_word_embeddings": True, "attention_bias": True}),
    "olmo3 one kv head": ("Olmo3", OLMO3 | {"num_key_value_heads": 1, "head_dim": 12}),
    "olmo3 window longer than the text": ("Olmo3", OLMO3 | {"sliding_window": 50}),
    "olmo3 chosen layers": ("Olmo3", OLMO3 | layers("fw")),
    "olmo3 windows alone": ("Olmo3", OLMO3 | layers("ww")),
    "olmo3 no windows": ("Olmo3", OLMO3 | layers("ff")),
    "olmo3 exact gelu": ("Olmo3", OLMO3 | {"hidden_act": "gelu"}),
    "olmo3 yarn": ("Olmo3", OLMO3 | by_kind(YARN | {"rope_theta": 300.0}, {"rope_theta": 300.0})),
    "olmo3 two bases": ("Olmo3", OLMO3 | by_kind({"rope_theta": 300.0}, {"rope_theta": 40.0})),
}
