"""GPT-J and GPT-NeoX: attention and feed-forward network side by side, rotary positions on a part of each head.

Sources: Wang and Komatsuzaki 2021 (one norm for both, pairs of neighbouring dimensions, a bias on the head); Black et
al. 2022, section 2.1 (two norms, pairs half a head apart; Pythia is of this family).
"""

from typing import Any

from groundup.formats.families.gpt import GPT2_WITHOUT_EFFECT, MASKS, read_heads
from groundup.formats.families.llama import ACTIVATIONS, ALL, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import read_rope, write_rope
from groundup.formats.rules import JoinedByGroup, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm

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


def gptj_rules(config: ModelConfig) -> list[Rule]:
    """GPT-J's names."""
    return [*with_biases(same(GPTJ_NAMES)), *same({"head_bias": "lm_head.bias"})]


def _read_neox(keys: Keys) -> ModelConfig:
    keys.without_effect(
        *("attention_dropout", "attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout"),
        "hidden_dropout_prob",
    )
    width, heads, head_dim = read_heads(keys, "hidden_size", "num_attention_heads")
    positions = keys.size("max_position_embeddings", default=2048)
    theta, fraction = keys.positive("rotary_emb_base", default=10_000.0), keys.positive("rotary_pct", default=0.25)
    # Later versions wrote both names; what a file means where they differ depends on the version that reads it.
    keys.fixed(rope_theta=theta, partial_rotary_factor=fraction)
    rope = read_rope(keys, head_dim, positions, theta=theta, fraction=fraction)
    norm = Norm("layer", keys.positive("layer_norm_eps", default=1e-5), bias=True)
    bias = ALL if keys.flag("attention_bias", default=True) else ()
    activation = keys.choice("hidden_act", among=ACTIVATIONS, default="gelu")
    layer = LayerSpec(
        Attention(heads, heads, head_dim, rope=rope, bias=bias),
        FeedForward(keys.size("intermediate_size"), activation, gated=False, bias=True),
        norm,
        "parallel_two_norms" if keys.flag("use_parallel_residual", default=True) else "pre",
    )
    return ModelConfig(
        family="gpt_neox",
        vocab_size=keys.size("vocab_size"),
        width=width,
        layers=(layer,) * keys.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=keys.flag("tie_word_embeddings", default=False),
        max_positions=positions,
    )


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    assert layer.attention.rope is not None
    rope = write_rope(layer.attention.rope, layer.attention.head_dim)
    return {
        "attention_bias": bool(layer.attention.bias),
        "hidden_act": activation_name(layer.network.activation),
        "hidden_size": config.width,
        "intermediate_size": layer.network.width,
        "layer_norm_eps": layer.norm.eps,
        "max_position_embeddings": config.max_positions,
        "num_attention_heads": layer.attention.heads,
        "num_hidden_layers": len(config.layers),
        "rope_scaling": rope["rope_scaling"],
        # Under its own names alone: transformers 5 does not read the usual ones here.
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": rope.get("partial_rotary_factor", 1.0),
        "tie_word_embeddings": config.tied_head,
        "use_parallel_residual": layer.placement == "parallel_two_norms",
        "vocab_size": config.vocab_size,
    }


def _read_gptj(keys: Keys) -> ModelConfig:
    keys.without_effect(*GPT2_WITHOUT_EFFECT, "gradient_checkpointing")
    keys.fixed(rotary=True, scale_attn_weights=True)
    width, heads, head_dim = read_heads(keys, "n_embd", "n_head")
    dims = keys.size("rotary_dim", default=64)
    norm = Norm("layer", keys.positive("layer_norm_epsilon", default=1e-5), bias=True)
    activation = keys.choice("activation_function", among=ACTIVATIONS, default="gelu_new")
    layer = LayerSpec(
        Attention(heads, heads, head_dim, rope=Rope(dims=None if dims == head_dim else dims, interleaved=True)),
        FeedForward(keys.optional_size("n_inner") or 4 * width, activation, gated=False, bias=True),
        norm,
        "parallel",
    )
    return ModelConfig(
        family="gptj",
        vocab_size=keys.size("vocab_size"),
        width=width,
        layers=(layer,) * keys.size("n_layer"),
        final_norm=norm,
        tied_head=keys.flag("tie_word_embeddings", default=False),
        max_positions=keys.size("n_positions", default=2048),
        head_bias=True,
    )


def _write_gptj(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    assert layer.attention.rope is not None
    return {
        "activation_function": activation_name(layer.network.activation),
        "layer_norm_epsilon": layer.norm.eps,
        "n_embd": config.width,
        "n_head": layer.attention.heads,
        "n_inner": layer.network.width,
        "n_layer": len(config.layers),
        "n_positions": config.max_positions,
        "rotary_dim": layer.attention.rope.dims or layer.attention.head_dim,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
    }


NEOX_UNUSED = tuple(f"gpt_neox.layers.*.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq"))
GPT_NEOX = Family("gpt_neox", "GPTNeoXForCausalLM", _read_neox, _write_neox, neox_rules, NEOX_UNUSED)
GPTJ = Family("gptj", "GPTJForCausalLM", _read_gptj, _write_gptj, gptj_rules, MASKS)
