"""DeepSeek-V3 (2024): latent attention, experts chosen in groups by corrected sigmoid scores, first layers dense."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.mixtral import BLOCK, MATRICES, expert_rules, experts_of, with_experts
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Attention, Experts, FeedForward, LatentAttention, LayerSpec, Norm, Router

# Of what passes through the ranks; `rms_norm_eps` is for the other norms only.
LATENT_NORM = Norm("rms", 1e-6)
NAMES = {
    "layers.*.mixer.query_down.weight": "model.layers.*.self_attn.q_a_proj.weight",
    "layers.*.mixer.query_norm.weight": "model.layers.*.self_attn.q_a_layernorm.weight",
    "layers.*.mixer.latent.weight": "model.layers.*.self_attn.kv_a_proj_with_mqa.weight",
    "layers.*.mixer.latent_norm.weight": "model.layers.*.self_attn.kv_a_layernorm.weight",
    "layers.*.mixer.key_value.weight": "model.layers.*.self_attn.kv_b_proj.weight",
    f"{BLOCK}shared.gate.weight": "model.layers.*.mlp.shared_experts.gate_proj.weight",
    f"{BLOCK}shared.up.weight": "model.layers.*.mlp.shared_experts.up_proj.weight",
    f"{BLOCK}shared.down.weight": "model.layers.*.mlp.shared_experts.down_proj.weight",
}


def rules(config: ModelConfig) -> Sequence[Rule]:
    """LLaMA's names for what is like LLaMA, and those of latent attention and experts."""
    query = "q_proj" if _latent(config.layers[0]).query_rank is None else "q_b_proj"
    names = llama.NAMES | NAMES | {"layers.*.mixer.query.weight": f"model.layers.*.self_attn.{query}.weight"}
    if not any(isinstance(layer.feed_forward, Experts) for layer in config.layers):
        return with_biases(same(names))
    correction = same({f"{BLOCK}correction": "model.layers.*.mlp.gate.e_score_correction_bias"})
    return [*with_biases(same(names)), *correction, *expert_rules(config, "model.layers.*.mlp.", MATRICES)]


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder."""
    keys.without_effect("qk_head_dim", "ep_size", "aux_loss_alpha", "seq_aux", "num_mtp_layers")
    keys.without_effect("num_nextn_predict_layers")  # they only speculate; what a model says they do not change
    keys.fixed(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1)
    config = llama.read_base(keys, "deepseek_v3", positions=4096, kv_heads=128)
    plain = config.layers[0].attention
    if plain.kv_heads != plain.heads:
        raise ValueError(f"`num_key_value_heads` ({plain.kv_heads}) must be the number of heads ({plain.heads})")
    layer = replace(config.layers[0], mixer=_read_latent(keys, plain))
    config = replace(config, layers=(layer,) * len(config.layers))
    dense = keys.count("first_k_dense_replace", default=3)
    experts = _read_experts(keys, config.layers[0].network)
    return with_experts(config, experts, [index >= dense for index in range(len(config.layers))])


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    latent, layer = _latent(config.layers[0]), config.layers[0]
    stand_in = Attention(latent.heads, latent.heads, latent.rotated_dim, rope=latent.rope)
    dense = sum(not isinstance(one.feed_forward, Experts) for one in config.layers)
    keys = llama.write_base(replace(config, layers=tuple(replace(one, mixer=stand_in) for one in config.layers)))
    if latent.yarn_mscale:
        keys["rope_scaling"]["mscale_all_dim"] = latent.yarn_mscale
    keys |= {
        "attention_bias": latent.bias,
        "first_k_dense_replace": dense,
        "kv_lora_rank": latent.latent_rank,
        "q_lora_rank": latent.query_rank,
        "qk_nope_head_dim": latent.plain_dim,
        "qk_rope_head_dim": latent.rotated_dim,
        "rms_norm_eps": layer.norm.eps,
        "rope_interleave": latent.rope.interleaved,
        "v_head_dim": latent.value_dim,
    }
    if dense == len(config.layers):
        return keys
    experts, router = experts_of(config), experts_of(config).router
    assert experts.shared is not None
    dense_width = next((one.network.width for one in config.layers if not isinstance(one.feed_forward, Experts)), None)
    return keys | {
        "intermediate_size": dense_width or experts.expert.width,
        "moe_intermediate_size": experts.expert.width,
        "n_group": router.groups,
        "n_routed_experts": router.experts,
        "n_shared_experts": experts.shared.width // experts.expert.width,
        "norm_topk_prob": router.normalised,
        "num_experts_per_tok": router.chosen,
        "routed_scaling_factor": router.scale,
        "topk_group": router.chosen_groups,
    }


def _latent(layer: LayerSpec) -> LatentAttention:
    assert isinstance(layer.mixer, LatentAttention)
    return layer.mixer


def _read_latent(keys: Keys, plain: Attention) -> LatentAttention:
    assert plain.rope is not None
    table = keys.table("rope_parameters") or keys.table("rope_scaling")
    stretched = table is not None and plain.rope.scaling is not None
    return LatentAttention(
        plain.heads,
        keys.optional_size("q_lora_rank", default=1536),
        keys.size("kv_lora_rank", default=512),
        keys.size("qk_nope_head_dim", default=128),
        keys.size("qk_rope_head_dim", default=64),
        keys.size("v_head_dim", default=128),
        replace(plain.rope, interleaved=keys.flag("rope_interleave", default=True)),
        LATENT_NORM,
        bias=keys.flag("attention_bias", default=False),
        yarn_mscale=(table.optional_positive("mscale_all_dim") or 0.0) if stretched and table is not None else 0.0,
    )


def _read_experts(keys: Keys, dense: FeedForward) -> Experts:
    width = keys.size("moe_intermediate_size", default=2048)
    router = Router(
        keys.size("n_routed_experts", "num_local_experts", default=256),
        keys.size("num_experts_per_tok", default=8),
        score="sigmoid",
        normalised=keys.flag("norm_topk_prob", default=True),
        correction=True,
        groups=keys.size("n_group", default=8),
        chosen_groups=keys.size("topk_group", default=4),
        scale=keys.positive("routed_scaling_factor", default=2.5),
    )
    shared = replace(dense, width=width * keys.size("n_shared_experts", default=1))
    return Experts(replace(dense, width=width), router, shared)


DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    read,
    write,
    rules,
    # The published model's layer for speculation; transformers passes over it likewise.
    ("model.layers.61.*",),
)
