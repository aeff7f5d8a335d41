"""DeepSeek-V3 (2024): latent attention, experts chosen in groups by corrected sigmoid scores, first layers dense."""

from collections.abc import Sequence
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, Several, experts_of, fixed, without_effect
from groundup.formats.families import llama
from groundup.formats.families.mixtral import BLOCK, MATRICES, expert_rules
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import write_rope
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import LatentAttention, LayerSpec, Norm

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
    correction = same({f"{BLOCK}correction": "model.layers.*.mlp.gate.e_score_correction_bias"})
    return [*with_biases(same(names)), *correction, *expert_rules(config, "model.layers.*.mlp.", MATRICES)]


def _read_latent(keys: Keys, facts: Facts) -> None:
    """The heads, and their rotary positions; with YaRN scores may grow too."""
    heads, kv_heads = facts["mixer.heads"], facts["mixer.kv_heads"]
    if kv_heads != heads:
        raise ValueError(f"`num_key_value_heads` ({kv_heads}) must be the number of heads ({heads})")
    fields.Rotary(interleaved=keys.flag("rope_interleave", default=True)).read("rope_theta", keys, facts)
    rope = facts["mixer.rope"]
    table = keys.table("rope_parameters") or keys.table("rope_scaling")
    if table is not None and rope.scaling is not None:
        facts["latent.yarn_mscale"] = table.optional_positive("mscale_all_dim") or 0.0
    facts |= {"latent.heads": heads, "latent.rope": rope}


def _write_latent(config: ModelConfig) -> dict[str, Any]:
    latent = _latent(config.layers[0])
    written = write_rope(latent.rope, latent.head_dim)
    if latent.yarn_mscale:
        written["rope_scaling"]["mscale_all_dim"] = latent.yarn_mscale
    return written | {"rope_interleave": latent.rope.interleaved}


def _read_shared(keys: Keys, facts: Facts) -> None:
    facts["shared.width"] = facts["expert.width"] * keys.size("n_shared_experts", default=1)


def _write_shared(config: ModelConfig) -> dict[str, Any]:
    experts = experts_of(config)
    if experts is None or experts.shared is None:
        return {}
    return {"n_shared_experts": experts.shared.width // experts.expert.width}


KEYS = llama.KEYS | {
    **without_effect("qk_head_dim ep_size aux_loss_alpha seq_aux num_mtp_layers"),
    **without_effect("num_nextn_predict_layers"),  # they only speculate; what a model says they do not change
    "scoring_func": fixed("sigmoid"),
    "topk_method": fixed("noaux_tc"),
    "moe_layer_freq": fixed(1),
    "num_key_value_heads": fields.KV_HEADS.usually(128),
    "max_position_embeddings": fields.POSITIONS.usually(4096),
    "rope_theta": Several(_read_latent, _write_latent),
    "attention_bias": Field("latent.bias", Keys.flag, default=False),
    "q_lora_rank": Field("latent.query_rank", Keys.optional_size, default=1536),
    "kv_lora_rank": Field("latent.latent_rank", Keys.size, default=512),
    "qk_nope_head_dim": Field("latent.plain_dim", Keys.size, default=128),
    "qk_rope_head_dim": Field("latent.rotated_dim", Keys.size, default=64),
    "v_head_dim": Field("latent.value_dim", Keys.size, default=128),
    "first_k_dense_replace": fields.DenseFirst(3),
    "moe_intermediate_size": fields.EXPERT_WIDTH.usually(2048),
    "n_shared_experts": Several(_read_shared, _write_shared),
    "n_routed_experts": fields.EXPERTS.also("num_local_experts").usually(256),
    "num_experts_per_tok": fields.CHOSEN.usually(8),
    "norm_topk_prob": fields.NORMALISED.usually(True),
    "n_group": Field("router.groups", Keys.size, default=8),
    "topk_group": Field("router.chosen_groups", Keys.size, default=4),
    "routed_scaling_factor": fields.ROUTER_SCALE.usually(2.5),
}
ALWAYS = llama.GATED | {
    "layer.mixer": "latent",
    "latent.norm": LATENT_NORM,
    "router.score": "sigmoid",
    "router.correction": True,
}


def _latent(layer: LayerSpec) -> LatentAttention:
    assert isinstance(layer.mixer, LatentAttention)
    return layer.mixer


DEEPSEEK_V3 = mapped(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    KEYS,
    rules,
    always=ALWAYS,
    # The published model's layer for speculation; transformers passes over it likewise.
    ignored=("model.layers.61.*",),
)
