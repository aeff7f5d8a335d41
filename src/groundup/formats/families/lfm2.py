"""LFM2 (Liquid AI 2025): gated short convolutions, every few layers attention with normed queries and keys.

RMS norms, SwiGLU, a tied head; LFM2-MoE has experts chosen by corrected sigmoid scores behind all but the first layers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, Several, fixed, without_effect
from groundup.formats.families import llama
from groundup.formats.families.mixtral import BLOCK, MIXTRAL_MATRICES, expert_rules, fused_expert_rules
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Attention, Mixer

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
)
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
    return [*rules(config), *_correction(), *expert_rules(config, EXPERTS, MIXTRAL_MATRICES)]


def _fused_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*rules(config), *_correction(), *fused_expert_rules(EXPERTS)]


def _correction() -> list[Rule]:
    return same({f"{BLOCK}correction": f"{EXPERTS}expert_bias"})


def _read_attending(keys: Keys, facts: Facts) -> list[bool]:
    """By default all layers attend, or those of `full_attn_idxs`."""
    found = keys.optional_numbers("full_attn_idxs")
    return [found is not None and index not in found for index in range(facts["layers"])]


def _refuse_other_sizes(keys: Keys, facts: Facts) -> None:
    width = facts["width"]
    keys.fixed(block_dim=width, conv_dim=width, conv_dim_out=width, num_heads=facts["mixer.heads"])


TIED = replace(fields.TIED, reader=lambda keys, *names, default: keys.flag("tie_embedding", *names, default=default))
SHARED_KEYS = (
    llama.SHAPE
    | without_effect(WITHOUT_EFFECT)
    | dict.fromkeys(("block_use_swiglu", "use_pos_enc"), fixed(True))
    | {
        "hidden_act": fixed("silu"),
        "num_key_value_heads": fields.KV_HEADS.usually(8),
        "max_position_embeddings": fields.POSITIONS.usually(128_000),
        "rope_theta": fields.Rotary(1_000_000.0),
        "norm_eps": fields.EPS.usually(1e-5),
        "block_dim": Several(_refuse_other_sizes),
        "conv_L_cache": Field("convolution.kernel", Keys.size, default=3),
        "conv_bias": Field("convolution.bias", Keys.flag, default=False),
        "layer_types": fields.OtherMixers("conv", "convolution", _read_attending),
        "tie_word_embeddings": TIED.usually(True),
    }
)


def _read_inner(keys: Keys, facts: Facts) -> None:
    width, factor = (
        keys.size("block_ff_dim", "intermediate_size"),
        keys.optional_positive("block_ffn_dim_multiplier", default=1.0),
    )
    multiple = keys.size("block_multiple_of", default=256)
    if keys.flag("block_auto_adjust_ff_dim", default=True):
        # The width is that of a network without a gate, which has two matrices where these have three.
        width = int(2 * width / 3)
        if factor is not None:
            width = -(-int(factor * width) // multiple) * multiple
    facts["feed_forward.width"] = width


def _write_inner(config: ModelConfig) -> dict[str, Any]:
    """The inner width as it is, not as what it is made of."""
    return {"intermediate_size": config.layers[0].network.width, "block_auto_adjust_ff_dim": False}


LFM2_KEYS = SHARED_KEYS | {"intermediate_size": Several(_read_inner, _write_inner)}
LFM2_MOE_KEYS = SHARED_KEYS | {
    "num_dense_layers": fields.DenseFirst(2),
    "moe_intermediate_size": fields.EXPERT_WIDTH.usually(1792),
    "num_experts": fields.EXPERTS.usually(32),
    "num_experts_per_tok": fields.CHOSEN.usually(4),
    "norm_topk_prob": fields.NORMALISED.usually(True),
    "use_expert_bias": Field("router.correction", Keys.flag, default=True),
    "routed_scaling_factor": fields.ROUTER_SCALE.usually(1.0),
}
ALWAYS = llama.NORMED_HEADS | {"feed_forward.activation": "silu"}

LFM2 = mapped("lfm2", "Lfm2ForCausalLM", LFM2_KEYS, rules, always=ALWAYS)
LFM2_MOE = mapped(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    LFM2_MOE_KEYS,
    _expert_rules,
    always=ALWAYS | {"router.score": "sigmoid", "router.least_sum": LEAST_SUM},
    other_rules=(_fused_rules,),
)
