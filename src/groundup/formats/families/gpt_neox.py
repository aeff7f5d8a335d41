"""GPT-J and GPT-NeoX: attention and feed-forward network side by side, rotary positions on a part of each head.

Sources: Wang and Komatsuzaki 2021 (one norm for both, pairs of neighbouring dimensions, a bias on the head); Black et
al. 2022, section 2.1 (two norms, pairs half a head apart; Pythia is of this family).
"""

from dataclasses import replace
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, Several, fixed, without_effect
from groundup.formats.families.gpt import MASKS, PLAIN, PLAIN_KEYS, SHAPE
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedByGroup, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope

NEOX_NAMES = {
    "embedding.weight": "gpt_neox.embed_in.weight",
    "layers.*.mixer_norm.weight": "gpt_neox.layers.*.input_layernorm.weight",
    "layers.*.mixer.output.weight": "gpt_neox.layers.*.attention.dense.weight",
    "layers.*.feed_forward_norm.weight": "gpt_neox.layers.*.post_attention_layernorm.weight",
    "layers.*.feed_forward.up.weight": "gpt_neox.layers.*.mlp.dense_h_to_4h.weight",
    "layers.*.feed_forward.down.weight": "gpt_neox.layers.*.mlp.dense_4h_to_h.weight",
    "final_norm.weight": "gpt_neox.final_layer_norm.weight",
    "head.weight": "embed_out.weight",
}
GPTJ_NAMES = {
    "embedding.weight": "transformer.wte.weight",
    "layers.*.mixer_norm.weight": "transformer.h.*.ln_1.weight",
    "layers.*.mixer.query.weight": "transformer.h.*.attn.q_proj.weight",
    "layers.*.mixer.key.weight": "transformer.h.*.attn.k_proj.weight",
    "layers.*.mixer.value.weight": "transformer.h.*.attn.v_proj.weight",
    "layers.*.mixer.output.weight": "transformer.h.*.attn.out_proj.weight",
    "layers.*.feed_forward.up.weight": "transformer.h.*.mlp.fc_in.weight",
    "layers.*.feed_forward.down.weight": "transformer.h.*.mlp.fc_out.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "head.weight": "lm_head.weight",
}


def joined_by_head(disk: str, kv_heads: int) -> Rule:
    """Queries, keys and values as one tensor, laid out by key-value head."""
    projections = tuple(f"layers.*.mixer.{name}.weight" for name in ("query", "key", "value"))
    return Rule(projections, (disk,), JoinedByGroup(kv_heads))


def neox_rules(config: ModelConfig) -> list[Rule]:
    """GPT-NeoX's names."""
    fused = joined_by_head("gpt_neox.layers.*.attention.query_key_value.weight", config.layers[0].attention.kv_heads)
    return with_biases([*same(NEOX_NAMES), fused])


def _newer_neox_rules(config: ModelConfig) -> list[Rule]:
    """With the head's name of transformers 5, by which adapters call it."""
    return [
        replace(rule, disk=("lm_head.weight",)) if rule.ours == ("head.weight",) else rule
        for rule in neox_rules(config)
    ]


def gptj_rules(config: ModelConfig) -> list[Rule]:
    """GPT-J's names."""
    return [*with_biases(same(GPTJ_NAMES)), *same({"head_bias": "lm_head.bias"})]


def _read_rope(keys: Keys, facts: Facts) -> None:
    theta, fraction = keys.positive("rotary_emb_base", default=10_000.0), keys.positive("rotary_pct", default=0.25)
    # Later versions wrote both names; what a file means where they differ depends on the version that reads it.
    keys.fixed(rope_theta=theta, partial_rotary_factor=fraction)
    fields.Rotary(theta, fraction).read("rotary_emb_base", keys, facts)


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    """Under its own names alone: transformers 5 does not read the usual ones here."""
    written = fields.Rotary().write("rotary_emb_base", config)
    return {
        "rope_scaling": written["rope_scaling"],
        "rotary_emb_base": written["rope_theta"],
        "rotary_pct": written.get("partial_rotary_factor", 1.0),
    }


NEOX_KEYS = PLAIN_KEYS | {
    **without_effect("attention_dropout attention_probs_dropout_prob classifier_dropout hidden_dropout"),
    **without_effect("hidden_dropout_prob"),
    "max_position_embeddings": fields.POSITIONS.usually(2048),
    "rotary_emb_base": Several(_read_rope, _write_rope),
    "attention_bias": fields.BIASES.usually(True),
    "use_parallel_residual": Field(
        "layer.placement",
        Keys.flag,
        default=True,
        ours=lambda side_by_side: "parallel_two_norms" if side_by_side else "pre",
        theirs=lambda placement: placement == "parallel_two_norms",
    ),
    "vocab_size": fields.VOCABULARY,
    "tie_word_embeddings": fields.TIED.usually(False),
}


def _read_rotated(keys: Keys, facts: Facts) -> None:
    dims = keys.size("rotary_dim", default=64)
    facts["mixer.rope"] = Rope(dims=None if dims == facts["mixer.head_dim"] else dims, interleaved=True)


def _write_rotated(config: ModelConfig) -> dict[str, Any]:
    mixer = config.layers[0].attention
    assert mixer.rope is not None
    return {"rotary_dim": mixer.rope.dims or mixer.head_dim}


GPTJ_KEYS = SHAPE | {
    **without_effect("gradient_checkpointing"),
    "rotary": fixed(True),
    "scale_attn_weights": fixed(True),
    "rotary_dim": Several(_read_rotated, _write_rotated),
    "n_positions": fields.POSITIONS.usually(2048),
    "vocab_size": fields.VOCABULARY,
    "tie_word_embeddings": fields.TIED.usually(False),
}
NEOX_UNUSED = tuple(f"gpt_neox.layers.*.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq"))
GPT_NEOX = mapped(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    NEOX_KEYS,
    neox_rules,
    always=PLAIN,
    ignored=NEOX_UNUSED,
    other_rules=(_newer_neox_rules,),
)
GPTJ = mapped(
    "gptj",
    "GPTJForCausalLM",
    GPTJ_KEYS,
    gptj_rules,
    always=PLAIN | {"layer.placement": "parallel", "head_bias": True},
    ignored=MASKS,
)
