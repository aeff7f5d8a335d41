"""Cohere's Command R (2024) and, with windows, Command R7B and Command A (2024, 2025; `cohere2`).

Attention and feed-forward network side by side behind one layer norm without bias, rotary positions in neighbouring
pairs, SwiGLU, a tied head whose logits are scaled. Command R+ norms each query and key head with a weight of its own;
Cohere 2 has windows in three of four layers and no positions in the fourth.
"""

from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig
from groundup.model.specs import QueryKeyNorm


def read_parallel(
    keys: Keys, family: str, *, logit_scale: float, eps: float = 1e-5, theta: float = 10_000.0, positions: int = 8192
) -> ModelConfig:
    """A model of parallel, gated layers without biases, with rotary positions in neighbouring pairs and a tied head.

    The arguments are what a family's own defaults are where a file does not say.
    """
    config = llama.read_base(
        keys,
        family,
        norm="layer",
        eps=("layer_norm_eps", eps),
        theta=theta,
        positions=positions,
        tied=True,
    )
    layer = config.layers[0]
    assert layer.attention.rope is not None
    mixer = replace(layer.attention, rope=replace(layer.attention.rope, interleaved=True))
    layer = replace(layer, mixer=mixer, placement="parallel")
    return replace(
        config,
        layers=(layer,) * len(config.layers),
        logit_scale=keys.positive("logit_scale", default=logit_scale),
    )


def write_parallel(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_parallel` reads."""
    return llama.write_base(config) | {
        "layer_norm_eps": config.layers[0].norm.eps,
        "logit_scale": config.logit_scale,
    }


def _read(keys: Keys, family: str, theta: float) -> ModelConfig:
    keys.without_effect("model_max_length")
    config = read_parallel(keys, family, logit_scale=0.0625, theta=theta)
    return llama.with_mixers(config, bias=llama.ALL if keys.flag("attention_bias", default=False) else ())


def _read_cohere(keys: Keys) -> ModelConfig:
    config = _read(keys, "cohere", theta=500_000.0)
    if not keys.flag("use_qk_norm", default=False):
        return config
    return llama.with_mixers(config, query_key_norm=QueryKeyNorm(config.layers[0].norm, over="each_head"))


def _write_cohere(config: ModelConfig) -> dict[str, Any]:
    mixer = config.layers[0].attention
    return write_parallel(config) | {
        "attention_bias": bool(mixer.bias),
        "use_qk_norm": mixer.query_key_norm is not None,
    }


def _read_cohere2(keys: Keys) -> ModelConfig:
    config = _read(keys, "cohere2", theta=10_000.0)
    pattern = keys.size("sliding_window_pattern", default=4)
    keys.without_effect("cache_implementation", "use_parallel_embedding")
    # Written by Cohere's own code, never other than this.
    keys.fixed(order_of_interleaved_layers="local_attn_first", layer_switch=pattern)
    keys.fixed(position_embedding_type="rope_gptj", rotary_pct=1.0, use_qk_norm=False)
    keys.fixed(use_parallel_block=True, use_gated_activation=True, use_embedding_sharing=config.tied_head)
    kinds = keys.texts("layer_types") or [
        "sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(len(config.layers))
    ]
    config = llama.with_windows(config, keys.optional_size("sliding_window", default=4096), kinds)
    layers = (
        one if one.attention.window is not None else replace(one, mixer=replace(one.attention, rope=None))
        for one in config.layers
    )
    return replace(config, layers=tuple(layers))


def _write_cohere2(config: ModelConfig) -> dict[str, Any]:
    windows = llama.write_windows(config)
    # `transformers` wants a number even where no layer uses it.
    windows["sliding_window"] = windows["sliding_window"] or config.max_positions
    return write_parallel(config) | windows | {"attention_bias": bool(config.layers[0].attention.bias)}


COHERE = Family("cohere", "CohereForCausalLM", _read_cohere, _write_cohere, llama.rules)
COHERE2 = Family("cohere2", "Cohere2ForCausalLM", _read_cohere2, _write_cohere2, llama.rules)
