"""OLMo 2 and OLMo 3.

LLaMA's shape, but what is normed is what each sublayer gives, not what it takes, and the queries and keys of all heads
together. In OLMo 3 three of four layers have a window, and rotary positions are stretched in the others alone.
Sources: OLMo team 2024, 2025.
"""

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

NAMES = llama.NAMES | {
    "layers.*.mixer_output_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward_output_norm.weight": "model.layers.*.post_feedforward_layernorm.weight",
}
# In version 4 both kinds of layers have one base.
THETAS = {"full_attention": ("rope_theta", 500_000.0), "sliding_attention": ("rope_theta", 500_000.0)}


def _rules(config: ModelConfig) -> list[Rule]:
    return with_biases(same(NAMES))


def _read_any(keys: Keys, family: str, rope: Rope | None = None) -> ModelConfig:
    config = llama.read_base(keys, family, eps=("rms_norm_eps", 1e-5), rope=rope)
    bias = llama.ALL if keys.flag("attention_bias", default=False) else ()
    norm = QueryKeyNorm(config.layers[0].norm, over="width")
    return with_layers(with_mixers(config, bias=bias, query_key_norm=norm), placement="output")


def _read_olmo2(keys: Keys) -> ModelConfig:
    return _read_any(keys, "olmo2")


def _write_olmo2(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    return llama.write_base(config) | {"attention_bias": bool(layer.attention.bias), "rms_norm_eps": layer.norm.eps}


def _read_olmo3(keys: Keys) -> ModelConfig:
    head_dim = keys.optional_size("head_dim") or keys.size("hidden_size") // keys.size("num_attention_heads")
    ropes = read_ropes(keys, head_dim, keys.size("max_position_embeddings", default=2048), THETAS)
    config = _read_any(keys, "olmo3", ropes["full_attention"])
    kinds = keys.texts("layer_types") or [
        "sliding_attention" if (index + 1) % 4 else "full_attention" for index in range(len(config.layers))
    ]
    config = with_windows(config, keys.optional_size("sliding_window", default=4096), kinds)
    return with_ropes(config, ropes, kinds)


def _write_olmo3(config: ModelConfig) -> dict[str, Any]:
    windows = llama.write_windows(config)
    # `transformers` wants a number even where no layer uses it.
    windows["sliding_window"] = windows["sliding_window"] or config.max_positions
    return _write_olmo2(config) | windows | llama.write_ropes_by_kind(config, THETAS)


OLMO2 = Family("olmo2", "Olmo2ForCausalLM", _read_olmo2, _write_olmo2, _rules)
OLMO3 = Family("olmo3", "Olmo3ForCausalLM", _read_olmo3, _write_olmo3, _rules)
