"""Tiny models of Phi, Phi-3, Cohere and Cohere 2, with values that differ from all defaults."""

from typing import Any

from tiny_keys import DECODER, rotary

_PHI = DECODER | {"layer_norm_eps": 1e-3} | rotary(partial_rotary_factor=0.75)
_PHI3 = DECODER | {"rms_norm_eps": 1e-3} | rotary()
_COHERE = DECODER | {"layer_norm_eps": 1e-3, "logit_scale": 0.3} | rotary()
_COHERE2 = _COHERE | {"num_hidden_layers": 4, "sliding_window": 8}
_SHORT, _LONG = [1.1, 1.3, 1.7, 2.3], [1.2, 2.5, 4.5, 7.5]


def _longrope(original: int, count: int = 4, **values: Any) -> dict[str, Any]:
    factors = {"short_factor": _SHORT[:count], "long_factor": _LONG[:count]}
    return rotary("longrope", **factors, **values) | {"original_max_position_embeddings": original}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", _PHI),
    "phi half of each head rotated": ("Phi", _PHI | rotary()),
    "phi whole heads rotated": ("Phi", _PHI | rotary(partial_rotary_factor=1.0)),
    "phi heads of which a part is rotated that rounds badly": (
        "Phi",
        _PHI | rotary(partial_rotary_factor=0.69) | {"head_dim": 44},
    ),
    "phi tied": ("Phi", _PHI | {"tie_word_embeddings": True}),
    "phi norm of heads": ("Phi", _PHI | {"qk_layernorm": True}),
    "phi wide heads": ("Phi", _PHI | rotary(partial_rotary_factor=0.5) | {"head_dim": 12}),
    "phi one kv head": ("Phi", _PHI | {"num_key_value_heads": 1}),
    "phi all kv heads": ("Phi", _PHI | {"num_key_value_heads": None}),
    "phi exact gelu": ("Phi", _PHI | {"hidden_act": "gelu"}),
    "phi linear": ("Phi", _PHI | rotary("linear", factor=3.0, partial_rotary_factor=0.75)),
    "phi3": ("Phi3", _PHI3),
    "phi3 tied": ("Phi3", _PHI3 | {"tie_word_embeddings": True}),
    "phi3 window": ("Phi3", _PHI3 | {"sliding_window": 8}),
    "phi3 window longer than the text": ("Phi3", _PHI3 | {"sliding_window": 50}),
    "phi3 wide heads": ("Phi3", _PHI3 | {"head_dim": 12}),
    "phi3 one kv head": ("Phi3", _PHI3 | {"num_key_value_heads": 1}),
    "phi3 all kv heads": ("Phi3", _PHI3 | {"num_key_value_heads": None}),
    "phi3 tanh gelu": ("Phi3", _PHI3 | {"hidden_act": "gelu_pytorch_tanh"}),
    "phi3 half of each head rotated": ("Phi3", _PHI3 | rotary(partial_rotary_factor=0.5)),
    "phi3 longrope": ("Phi3", _PHI3 | _longrope(32)),
    "phi3 longrope, text as long as the original": ("Phi3", _PHI3 | _longrope(24)),
    "phi3 longrope, text beyond the original length": ("Phi3", _PHI3 | _longrope(16)),
    "phi3 longrope, a factor of its own": ("Phi3", _PHI3 | _longrope(32, factor=3.0)),
    "phi3 longrope, an attention factor of its own": ("Phi3", _PHI3 | _longrope(32, attention_factor=1.4)),
    "phi3 longrope not longer than it was": ("Phi3", _PHI3 | _longrope(64)),
    "phi3 longrope on half of each head": ("Phi3", _PHI3 | _longrope(32, count=2, partial_rotary_factor=0.5)),
    "cohere": ("Cohere", _COHERE),
    "cohere untied": ("Cohere", _COHERE | {"tie_word_embeddings": False}),
    "cohere biases": ("Cohere", _COHERE | {"attention_bias": True}),
    "cohere norm of heads": ("Cohere", _COHERE | {"use_qk_norm": True}),
    "cohere wide heads": ("Cohere", _COHERE | {"head_dim": 12, "use_qk_norm": True}),
    "cohere one kv head": ("Cohere", _COHERE | {"num_key_value_heads": 1, "use_qk_norm": True}),
    "cohere all kv heads": ("Cohere", _COHERE | {"num_key_value_heads": None}),
    "cohere exact gelu": ("Cohere", _COHERE | {"hidden_act": "gelu"}),
    "cohere dynamic": ("Cohere", _COHERE | rotary("dynamic", factor=3.0) | {"max_position_embeddings": 16}),
    "cohere2": ("Cohere2", _COHERE2),
    "cohere2 untied, biases": ("Cohere2", _COHERE2 | {"tie_word_embeddings": False, "attention_bias": True}),
    "cohere2 every second layer global": ("Cohere2", _COHERE2 | {"sliding_window_pattern": 2}),
    "cohere2 window longer than the text": ("Cohere2", _COHERE2 | {"sliding_window": 50}),
    "cohere2 chosen layers": (
        "Cohere2",
        _COHERE2 | {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "head_dim": 12},
    ),
    "cohere2 all layers global": (
        "Cohere2",
        _COHERE2 | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "num_key_value_heads": 1},
    ),
    "cohere2 all layers local": (
        "Cohere2",
        _COHERE2 | {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2, "num_key_value_heads": None},
    ),
}
