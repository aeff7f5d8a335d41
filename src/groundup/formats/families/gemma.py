"""Gemma, Gemma 2 and the text decoder of Gemma 3.

LLaMA's shape with norms that multiply by 1 + weight, GELU for SiLU, an embedding multiplied by the root of its width,
and heads of any dimension. Gemma 2 norms what each sublayer gives as well, softcaps scores and logits, and gives every
other layer a window. Gemma 3 norms each head's queries and keys instead of capping their scores; five of six layers
have a window, and a base of their own for the rotation. Sources: Gemma team 2024a, 2024b, 2025.
"""

from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.llama import with_layers, with_mixers, with_ropes, with_windows
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import read_ropes
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope
from groundup.model.specs import QueryKeyNorm

SANDWICH_NAMES = llama.NAMES | {
    "layers.*.mixer_output_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.pre_feedforward_layernorm.weight",
    "layers.*.feed_forward_output_norm.weight": "model.layers.*.post_feedforward_layernorm.weight",
}
# Where version 4 keeps the base of each kind of layer in Gemma 3, and what it is where a file does not say.
THETAS = {"full_attention": ("rope_theta", 1_000_000.0), "sliding_attention": ("rope_local_base_freq", 10_000.0)}


def _sandwich_rules(config: ModelConfig) -> list[Rule]:
    return with_biases(same(SANDWICH_NAMES))


def _read_any(
    keys: Keys, family: str, activation_key: str, *, kv_heads: int, positions: int = 8192, rope: Rope | None = None
) -> ModelConfig:
    """What the three have in common; kv_heads, positions: defaults."""
    # Published files give the activation under two keys, and the window too; each reader takes the one that counts.
    keys.without_effect("cache_implementation", "hidden_act", "hidden_activation", "sliding_window_size")
    keys.off("use_bidirectional_attention")
    config = llama.read_base(
        keys,
        family,
        norm="rms_plus_one",
        activation="gelu_pytorch_tanh",
        activation_key=activation_key,
        positions=positions,
        head_dim=256,
        tied=True,
        rope=rope,
    )
    bias = llama.ALL if keys.flag("attention_bias", default=False) else ()
    config = with_mixers(config, bias=bias, kv_heads=keys.size("num_key_value_heads", default=kv_heads))
    return replace(config, embedding_scale=config.width**0.5)


def _write_any(config: ModelConfig, activation_key: str) -> dict[str, Any]:
    layer = config.layers[0]
    return llama.write_base(config, activation_key) | {
        "attention_bias": bool(layer.attention.bias),
        "rms_norm_eps": layer.norm.eps,
    }


def _read_gemma(keys: Keys) -> ModelConfig:
    config = _read_any(keys, "gemma", "hidden_act", kv_heads=16)
    feed_forward = config.layers[0].network
    if feed_forward.activation == "gelu":  # so say the first files, and mean the approximation
        return with_layers(config, feed_forward=replace(feed_forward, activation="gelu_tanh"))
    return config


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    return _write_any(config, "hidden_act")


def _read_sandwich(keys: Keys, config: ModelConfig, pattern: int) -> tuple[ModelConfig, list[str]]:
    """What Gemma 2 and 3 add, and the kind of each layer: of `pattern` layers the last has no window."""
    kinds = keys.texts("layer_types") or [
        "sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(len(config.layers))
    ]
    config = with_windows(config, keys.optional_size("sliding_window", default=4096), kinds)
    config = with_mixers(config, scale=keys.size("query_pre_attn_scalar", default=256) ** -0.5)
    return with_layers(config, placement="sandwich"), kinds


def _write_sandwich(config: ModelConfig) -> dict[str, Any]:
    scale, windows = config.layers[0].attention.scale, llama.write_windows(config)
    assert scale is not None
    # `transformers` wants a number even where no layer uses it.
    windows["sliding_window"] = windows["sliding_window"] or config.max_positions
    return {
        **_write_any(config, "hidden_activation"),
        **windows,
        "final_logit_softcapping": config.logit_softcap,
        "query_pre_attn_scalar": round(scale**-2),
    }


def _read_gemma2(keys: Keys) -> ModelConfig:
    config, _ = _read_sandwich(keys, _read_any(keys, "gemma2", "hidden_activation", kv_heads=4), pattern=2)
    return replace(
        with_mixers(config, softcap=keys.optional_positive("attn_logit_softcapping", default=50.0)),
        logit_softcap=keys.optional_positive("final_logit_softcapping", default=30.0),
    )


def _write_gemma2(config: ModelConfig) -> dict[str, Any]:
    return _write_sandwich(config) | {"attn_logit_softcapping": config.layers[0].attention.softcap}


def _read_gemma3(keys: Keys) -> ModelConfig:
    keys.fixed(attn_logit_softcapping=None)
    keys.without_effect("_sliding_window_pattern")  # beside the `layer_types` that were made from it
    positions = keys.size("max_position_embeddings", default=131_072)
    ropes = read_ropes(keys, keys.size("head_dim", default=256), positions, THETAS)
    config = _read_any(
        keys, "gemma3_text", "hidden_activation", kv_heads=4, positions=positions, rope=ropes["full_attention"]
    )
    config, kinds = _read_sandwich(keys, config, pattern=keys.size("sliding_window_pattern", default=6))
    config = with_mixers(with_ropes(config, ropes, kinds), query_key_norm=QueryKeyNorm(config.layers[0].norm))
    return replace(config, logit_softcap=keys.optional_positive("final_logit_softcapping"))


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    return _write_sandwich(config) | llama.write_ropes_by_kind(config, THETAS)


GEMMA = Family("gemma", "GemmaForCausalLM", _read_gemma, _write_gemma, llama.rules)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _read_gemma2, _write_gemma2, _sandwich_rules)
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _sandwich_rules)
