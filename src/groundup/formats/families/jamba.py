"""Jamba (Lieber et al. 2024): Mamba with norms of its own, attention without positions in every eighth layer, experts
in every second."""

from collections.abc import Sequence

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, PerLayer, Several, fixed, norm_of, without_effect
from groundup.formats.families import llama
from groundup.formats.families.mamba import Expansion, mixer_rules, rank
from groundup.formats.families.mixtral import MATRICES, expert_rules, fused_expert_rules
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.recurrent_specs import Mamba
from groundup.model.specs import Attention, Experts

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.*.mixer_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.pre_ff_layernorm.weight",
    "layers.*.feed_forward.gate.weight": "model.layers.*.feed_forward.gate_proj.weight",
    "layers.*.feed_forward.up.weight": "model.layers.*.feed_forward.up_proj.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.feed_forward.down_proj.weight",
    "final_norm.weight": "model.final_layernorm.weight",
    "head.weight": "lm_head.weight",
}
INNER_NORMS = {
    "layers.*.mixer.step_norm.weight": "model.layers.*.mamba.dt_layernorm.weight",
    "layers.*.mixer.into_norm.weight": "model.layers.*.mamba.b_layernorm.weight",
    "layers.*.mixer.out_of_norm.weight": "model.layers.*.mamba.c_layernorm.weight",
}
ATTENTION = {ours: disk for ours, disk in llama.NAMES.items() if ours.startswith("layers.*.mixer.")}
FEED_FORWARD = "model.layers.*.feed_forward."
# How it is trained, how the scan is computed, how many logits are asked for, and what repeats another key.
WITHOUT_EFFECT = (
    "calc_logits_for_entire_prompt n_ctx num_logits_to_keep router_aux_loss_coef use_associative_scan "
    "use_mamba_kernels use_mambapy"
)


def _base_rules(config: ModelConfig) -> list[Rule]:
    """All but the experts; what a mixer's tensors are called depends on the layer."""
    by_kind = {True: [*mixer_rules("model.layers.*.mamba."), *same(INNER_NORMS)], False: with_biases(same(ATTENTION))}
    kinds = [isinstance(layer.mixer, Mamba) for layer in config.layers]
    mixers = [rule.of_layer(index) for index, kind in enumerate(kinds) for rule in by_kind[kind]]
    return [*with_biases(same(NAMES)), *mixers]


def rules(config: ModelConfig) -> Sequence[Rule]:
    """LLaMA's and Mamba's names; experts one by one."""
    return [*_base_rules(config), *expert_rules(config, FEED_FORWARD, MATRICES, router="router")]


def _fused_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*_base_rules(config), *fused_expert_rules(FEED_FORWARD, router="router")]


def _read_mixers(keys: Keys, facts: Facts) -> None:
    attends = read_pattern(keys, "attn_layer", period=8, offset=4, count=facts["layers"])
    facts["layer.mixer"] = PerLayer(tuple("mixer" if here else "mamba" for here in attends))


def _write_mixers(config: ModelConfig) -> dict[str, int]:
    return write_pattern("attn_layer", [isinstance(layer.mixer, Attention) for layer in config.layers])


def _read_sparse(keys: Keys, facts: Facts) -> None:
    """With one expert there are none."""
    sparse = read_pattern(keys, "expert_layer", period=2, offset=1, count=facts["layers"])
    facts["layer.sparse"] = PerLayer(tuple(here and facts["router.experts"] > 1 for here in sparse))


def _write_sparse(config: ModelConfig) -> dict[str, int]:
    sparse = [isinstance(layer.feed_forward, Experts) for layer in config.layers]
    return write_pattern("expert_layer", sparse) | ({} if any(sparse) else {"num_experts": 1})


KEYS = llama.KEYS | {
    **without_effect(WITHOUT_EFFECT),
    # Rotary positions, of which its attention has none.
    **without_effect("rope_theta rope_scaling rope_parameters original_max_position_embeddings"),
    "mamba_inner_layernorms": fixed(True),
    "sliding_window": fixed(None),
    "num_key_value_heads": fields.KV_HEADS.usually(8),
    "max_position_embeddings": fields.POSITIONS.usually(262_144),
    "mamba_expand": Expansion("mamba.channels"),
    "mamba_d_state": Field("mamba.state", Keys.size, default=16),
    "mamba_dt_rank": rank("mamba.rank"),
    "mamba_d_conv": Field("mamba.kernel", Keys.size, default=4),
    "mamba_proj_bias": Field("mamba.bias", Keys.flag, default=False),
    "mamba_conv_bias": Field("mamba.convolution_bias", Keys.flag, default=True),
    "attn_layer_period": Several(_read_mixers, _write_mixers),
    "num_experts": fields.EXPERTS.also("num_local_experts").usually(16),
    "num_experts_per_tok": fields.CHOSEN.usually(2),
    "expert_layer_period": Several(_read_sparse, _write_sparse),
}
ALWAYS = llama.GATED | {
    "mamba.activation": lambda facts: facts["feed_forward.activation"],
    "mamba.norm": norm_of,
    "router.normalised": False,
}


def read_pattern(keys: Keys, name: str, period: int, offset: int, count: int) -> list[bool]:
    """Which of the layers are of this kind. period, offset: the family's defaults."""
    period = keys.size(f"{name}_period", default=period)
    offset = keys.count(f"{name}_offset", default=offset)
    if offset >= period:
        raise ValueError(f"`{name}_offset` ({offset}) must be less than `{name}_period` ({period})")
    return [index % period == offset for index in range(count)]


def write_pattern(name: str, here: Sequence[bool]) -> dict[str, int]:
    """The period and offset of the layers of a kind; those of one that comes never, or once, lie beyond the last."""
    found = [index for index, is_here in enumerate(here) if is_here]
    offset = found[0] if found else len(here)
    period = found[1] - found[0] if len(found) > 1 else max(len(here), offset + 1)
    if offset >= period or [index % period == offset for index in range(len(here))] != list(here):
        raise ValueError(f"`{name}_period` cannot say that layers {found} of {len(here)} are of this kind")
    return {f"{name}_offset": offset, f"{name}_period": period}


JAMBA = mapped("jamba", "JambaForCausalLM", KEYS, rules, always=ALWAYS, other_rules=(_fused_rules,))
