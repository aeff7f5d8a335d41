"""LLaMA and those that differ from it by keys alone: Mistral, Qwen2, Qwen3, SmolLM3.

RMS norm before each sublayer, rotary positions, grouped-query attention, SwiGLU. Sources: Touvron et al. 2023; Jiang et
al. 2023 (a window); Qwen team 2024 and 2025 (biases on queries, keys and values; instead a norm of each head);
SmolLM3 (every fourth layer without positions).
"""

from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import ConfigMap, Facts, PerLayer, Several, without_effect
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import named
from groundup.model.config import ModelConfig

# The names that most decoders since LLaMA have.
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.*.mixer_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.*.mixer.query.weight": "model.layers.*.self_attn.q_proj.weight",
    "layers.*.mixer.key.weight": "model.layers.*.self_attn.k_proj.weight",
    "layers.*.mixer.value.weight": "model.layers.*.self_attn.v_proj.weight",
    "layers.*.mixer.output.weight": "model.layers.*.self_attn.o_proj.weight",
    "layers.*.mixer.query_norm.weight": "model.layers.*.self_attn.q_norm.weight",
    "layers.*.mixer.key_norm.weight": "model.layers.*.self_attn.k_norm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward.gate.weight": "model.layers.*.mlp.gate_proj.weight",
    "layers.*.feed_forward.up.weight": "model.layers.*.mlp.up_proj.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.mlp.down_proj.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


rules = named(NAMES)
# What most decoders since LLaMA call the sizes of their layers, with its defaults.
SHAPE: ConfigMap = {
    **without_effect("attention_dropout pretraining_tp"),
    "hidden_size": fields.WIDTH,
    "num_attention_heads": fields.HEADS,
    "head_dim": fields.HEAD_DIM,
    "num_key_value_heads": fields.KV_HEADS,
    "max_position_embeddings": fields.POSITIONS.usually(2048),
    "rope_theta": fields.Rotary(),
    "intermediate_size": fields.INNER,
    "hidden_act": fields.ACTIVATION.usually("silu"),
    "vocab_size": fields.VOCABULARY,
    "num_hidden_layers": fields.LAYERS,
    "tie_word_embeddings": fields.TIED.usually(False),
}
KEYS = SHAPE | {"rms_norm_eps": fields.EPS.usually(1e-6)}
ATTENTION_BIAS = {"attention_bias": fields.BIASES.usually(False)}
GATED: Facts = {"feed_forward.gated": True}
NORMED_HEADS = GATED | {"mixer.query_key_norm": fields.normed_heads()}
LLAMA_KEYS = KEYS | ATTENTION_BIAS | {"mlp_bias": fields.NETWORK_BIAS.usually(False)}
QWEN_KEYS = KEYS | {"max_position_embeddings": fields.POSITIONS.usually(32_768)}


def _read_qwen_windows(keys: Keys, facts: Facts) -> None:
    """A window in the layers from `max_window_layers` on, or where `layer_types` says, if windows are used at all."""
    window = keys.optional_size("sliding_window", default=4096)
    window = window if keys.flag("use_sliding_window", default=False) else None
    first = keys.size("max_window_layers", default=28)
    fields.read_windows(
        keys, facts, window, [window is not None and index >= first for index in range(facts["layers"])]
    )


def write_used_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys of a family that also says whether there is any window."""
    written = fields.write_windows(config)
    return written | {"use_sliding_window": written["sliding_window"] is not None}


QWEN_WINDOWS = {"sliding_window": Several(_read_qwen_windows, write_used_windows)}


def _read_rotated_layers(keys: Keys, facts: Facts) -> None:
    """The layers with positions, all but every fourth or those that `no_rope_layers` has a 1 for, and the windows."""
    count, rope = facts["layers"], facts["mixer.rope"]
    interval = keys.size("no_rope_layer_interval", default=4)
    rotated = keys.optional_numbers("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(count)]
    if len(rotated) != count:
        raise ValueError(f"`no_rope_layers` must have one number for each of the {count} layers")
    facts["mixer.rope"] = PerLayer(tuple(rope if turns else None for turns in rotated))
    window = keys.optional_size("sliding_window")
    window = window if keys.flag("use_sliding_window", default=False) else None
    fields.read_windows(keys, facts, window, [window is not None and not turns for turns in rotated])


def _write_rotated_layers(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(layer.attention.rope is not None) for layer in config.layers]
    return write_used_windows(config) | {"no_rope_layers": rotated}


LLAMA = mapped(
    "llama", "LlamaForCausalLM", LLAMA_KEYS, rules, always=GATED, ignored=("model.layers.*.rotary_emb.inv_freq",)
)
MISTRAL = mapped(
    "mistral",
    "MistralForCausalLM",
    KEYS
    | {
        "max_position_embeddings": fields.POSITIONS.usually(131_072),
        "sliding_window": fields.WINDOW.usually(4096),
    },
    rules,
    always=GATED,
)
QWEN2 = mapped(
    "qwen2",
    "Qwen2ForCausalLM",
    QWEN_KEYS | QWEN_WINDOWS,
    rules,
    always=GATED | {"mixer.bias": ("query", "key", "value")},
)
QWEN3 = mapped(
    "qwen3",
    "Qwen3ForCausalLM",
    QWEN_KEYS | ATTENTION_BIAS | QWEN_WINDOWS | {"head_dim": fields.HEAD_DIM.usually(128)},
    rules,
    always=NORMED_HEADS,
)
SMOLLM3 = mapped(
    "smollm3",
    "SmolLM3ForCausalLM",
    LLAMA_KEYS
    | {
        "max_position_embeddings": fields.POSITIONS.usually(32_768),
        "rope_theta": fields.Rotary(theta=2_000_000.0),
        "tie_word_embeddings": fields.TIED.usually(True),
        "no_rope_layers": Several(_read_rotated_layers, _write_rotated_layers),
    },
    rules,
    always=GATED,
)
