"""LFM2 (Liquid AI 2025): gated short convolutions, every few layers attention with normed queries and keys.

RMS norms, SwiGLU, a tied head; LFM2-MoE has experts chosen by corrected sigmoid scores behind all but the first layers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.mixtral import (
    BLOCK,
    MIXTRAL_MATRICES,
    expert_rules,
    experts_of,
    fused_expert_rules,
    with_experts,
)
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.delta_specs import ShortConvolution
from groundup.model.specs import Attention, Experts, Mixer, QueryKeyNorm, Router

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.*.mixer_norm.weight": "model.layers.*.operator_norm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.ffn_norm.weight",
    "layers.*.feed_forward.gate.weight": "model.layers.*.feed_forward.w1.weight",
    "layers.*.feed_forward.up.weight": "model.layers.*.feed_forward.w3.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.feed_forward.w2.weight",
    "final_norm.weight": "model.embedding_norm.weight",
    "head.weight": "lm_head.weight",
}
ATTENTION_NAMES = {
    "layers.*.mixer.query.weight": "model.layers.*.self_attn.q_proj.weight",
    "layers.*.mixer.key.weight": "model.layers.*.self_attn.k_proj.weight",
    "layers.*.mixer.value.weight": "model.layers.*.self_attn.v_proj.weight",
    "layers.*.mixer.output.weight": "model.layers.*.self_attn.out_proj.weight",
    "layers.*.mixer.query_norm.weight": "model.layers.*.self_attn.q_layernorm.weight",
    "layers.*.mixer.key_norm.weight": "model.layers.*.self_attn.k_layernorm.weight",
}
CONVOLUTION_NAMES = {
    "layers.*.mixer.convolution.weight": "model.layers.*.conv.conv.weight",
    "layers.*.mixer.output.weight": "model.layers.*.conv.out_proj.weight",
}
CONVOLUTION_INPUTS = Rule(
    tuple(f"layers.*.mixer.{name}.weight" for name in ("before", "after", "value")),
    ("model.layers.*.conv.in_proj.weight",),
    Joined(),
)
EXPERTS = "model.layers.*.feed_forward."
# How the published models were trained, and other names of what is said elsewhere; `transformers` passes over them too.
WITHOUT_EFFECT = (
    "block__name_mlp block_mlp_init_scale block_norm_eps block_out_init_scale block_use_xavier_init "
    "conv_use_xavier_init theta"
).split()
# What is added to the sum that the experts' weights are divided by.
LEAST_SUM = 1e-6


def rules(config: ModelConfig) -> list[Rule]:
    """The names on disk; a layer's mixer is called by its kind."""
    mixers = [rule.of_layer(index) for index, one in enumerate(config.layers) for rule in _mixer_rules(one.mixer)]
    return [*same(NAMES), *mixers]


def _mixer_rules(mixer: Mixer) -> list[Rule]:
    if isinstance(mixer, Attention):
        return same(ATTENTION_NAMES)
    return with_biases([*same(CONVOLUTION_NAMES), CONVOLUTION_INPUTS])


def _expert_rules(config: ModelConfig) -> Sequence[Rule]:
    if not any(isinstance(layer.feed_forward, Experts) for layer in config.layers):
        return rules(config)
    return [*rules(config), *_correction(), *expert_rules(config, EXPERTS, MIXTRAL_MATRICES)]


def _fused_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*rules(config), *_correction(), *fused_expert_rules(EXPERTS)]


def _correction() -> list[Rule]:
    return same({f"{BLOCK}correction": f"{EXPERTS}expert_bias"})


def _read_layers(keys: Keys, family: str, *inner: str) -> ModelConfig:
    """What the two families share. inner: see `llama.read_base`."""
    keys.without_effect(*WITHOUT_EFFECT)
    keys.fixed(hidden_act="silu", block_use_swiglu=True, use_pos_enc=True)
    config = llama.read_base(
        keys,
        family,
        eps=("norm_eps", 1e-5),
        theta=1_000_000.0,
        fraction=None,
        positions=128_000,
        kv_heads=8,
        inner=inner,
    )
    layer = config.layers[0]
    keys.fixed(block_dim=config.width, conv_dim=config.width, conv_dim_out=config.width)
    keys.fixed(num_heads=layer.attention.heads)
    attention = replace(layer.attention, query_key_norm=QueryKeyNorm(layer.norm))
    convolution = ShortConvolution(keys.size("conv_L_cache", default=3), keys.flag("conv_bias", default=False))
    kinds = _read_kinds(keys, len(config.layers))
    mixers: list[Mixer] = [convolution if kind == "conv" else attention for kind in kinds]
    return replace(
        config,
        layers=tuple(replace(layer, mixer=mixer) for mixer in mixers),
        tied_head=keys.flag("tie_embedding", "tie_word_embeddings", default=True),
    )


def _read_kinds(keys: Keys, count: int) -> list[str]:
    """`layer_types`, or attention in the layers of `full_attn_idxs`, by default in all."""
    found = keys.optional_numbers("full_attn_idxs")
    chosen = range(count) if found is None else found
    kinds = keys.texts("layer_types") or ["full_attention" if index in chosen else "conv" for index in range(count)]
    if len(kinds) != count or set(kinds) - {"conv", "full_attention"}:
        raise ValueError("`layer_types` must say conv or full_attention once for each layer")
    return kinds


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder without experts."""
    config = _read_layers(keys, "lfm2", "block_ff_dim", "intermediate_size")
    network = config.layers[0].network
    width, factor = network.width, keys.optional_positive("block_ffn_dim_multiplier", default=1.0)
    multiple = keys.size("block_multiple_of", default=256)
    if keys.flag("block_auto_adjust_ff_dim", default=True):
        # The width is that of a network without a gate, which has two matrices where these have three.
        width = int(2 * width / 3)
        if factor is not None:
            width = -(-int(factor * width) // multiple) * multiple
    return llama.with_layers(config, feed_forward=replace(network, width=width))


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json; the inner width as it is, not as what it is made of."""
    return _write_layers(config) | {"block_auto_adjust_ff_dim": False}


def _write_layers(config: ModelConfig) -> dict[str, Any]:
    mixers = [layer.mixer for layer in config.layers]
    attention = next((mixer for mixer in mixers if isinstance(mixer, Attention)), Attention(1, 1, 2))
    keys = llama.write_base(llama.with_layers(config, mixer=attention))
    for convolution in (mixer for mixer in mixers if isinstance(mixer, ShortConvolution)):
        keys |= {"conv_L_cache": convolution.kernel, "conv_bias": convolution.bias}
    kinds = {True: "full_attention", False: "conv"}
    return keys | {
        "layer_types": [kinds[isinstance(mixer, Attention)] for mixer in mixers],
        "norm_eps": config.layers[0].norm.eps,
    }


def _read_moe(keys: Keys) -> ModelConfig:
    config = _read_layers(keys, "lfm2_moe", "intermediate_size")
    dense = keys.count("num_dense_layers", default=2)
    expert = replace(config.layers[0].network, width=keys.size("moe_intermediate_size", default=1792))
    router = Router(
        keys.size("num_experts", default=32),
        keys.size("num_experts_per_tok", default=4),
        score="sigmoid",
        normalised=keys.flag("norm_topk_prob", default=True),
        correction=keys.flag("use_expert_bias", default=True),
        scale=keys.positive("routed_scaling_factor", default=1.0),
        least_sum=LEAST_SUM,
    )
    return with_experts(config, Experts(expert, router), [index >= dense for index in range(len(config.layers))])


def _write_moe(config: ModelConfig) -> dict[str, Any]:
    dense = [layer.network for layer in config.layers if not isinstance(layer.feed_forward, Experts)]
    keys = _write_layers(config) | {"num_dense_layers": len(dense)}
    if len(dense) == len(config.layers):
        return keys
    experts = experts_of(config)
    return keys | {
        # Where every layer has experts, nothing in the model is of this width.
        "intermediate_size": dense[0].width if dense else experts.expert.width,
        "moe_intermediate_size": experts.expert.width,
        "norm_topk_prob": experts.router.normalised,
        "num_experts": experts.router.experts,
        "num_experts_per_tok": experts.router.chosen,
        "routed_scaling_factor": experts.router.scale,
        "use_expert_bias": experts.router.correction,
    }


LFM2 = Family("lfm2", "Lfm2ForCausalLM", read, write, rules)
LFM2_MOE = Family("lfm2_moe", "Lfm2MoeForCausalLM", _read_moe, _write_moe, _expert_rules, other_rules=(_fused_rules,))
