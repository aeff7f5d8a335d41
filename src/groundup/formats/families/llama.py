"""LLaMA: `LlamaForCausalLM`."""

from collections.abc import Mapping
from typing import Any

from groundup.formats.family import Family, require, rope_theta
from groundup.model.config import Attention, FeedForward, LayerSpec, ModelConfig, Norm, Rope


def to_keys(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    layer = config.layers[0]
    return {
        "attention_bias": False,
        "head_dim": layer.attention.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.width,
        "intermediate_size": layer.feed_forward.width,
        "max_position_embeddings": config.max_positions,
        "mlp_bias": False,
        "num_attention_heads": layer.attention.heads,
        "num_hidden_layers": len(config.layers),
        "num_key_value_heads": layer.attention.kv_heads,
        "rms_norm_eps": layer.norm.eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
    }


def from_keys(keys: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a folder; ValueError, naming the key, for a value these parts cannot express."""
    require(keys, attention_bias=False, mlp_bias=False, hidden_act="silu", pretraining_tp=1)
    heads, width = keys["num_attention_heads"], keys["hidden_size"]
    norm = Norm("rms", keys.get("rms_norm_eps", 1e-6))
    layer = LayerSpec(
        Attention(heads, keys.get("num_key_value_heads") or heads, keys.get("head_dim") or width // heads),
        FeedForward(keys["intermediate_size"], "silu", gated=True),
        norm,
    )
    return ModelConfig(
        family="llama",
        vocab_size=keys["vocab_size"],
        width=width,
        layers=(layer,) * keys["num_hidden_layers"],
        rope=Rope(rope_theta(keys)),
        final_norm=norm,
        embedding_norm=None,
        tied_head=keys.get("tie_word_embeddings", False),
        logit_softcap=None,
        max_positions=keys.get("max_position_embeddings", 2048),
    )


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    tensors={
        "embedding.weight": "model.embed_tokens.weight",
        "layers.*.attention_norm.weight": "model.layers.*.input_layernorm.weight",
        "layers.*.attention.query.weight": "model.layers.*.self_attn.q_proj.weight",
        "layers.*.attention.key.weight": "model.layers.*.self_attn.k_proj.weight",
        "layers.*.attention.value.weight": "model.layers.*.self_attn.v_proj.weight",
        "layers.*.attention.output.weight": "model.layers.*.self_attn.o_proj.weight",
        "layers.*.feed_forward_norm.weight": "model.layers.*.post_attention_layernorm.weight",
        "layers.*.feed_forward.gate.weight": "model.layers.*.mlp.gate_proj.weight",
        "layers.*.feed_forward.up.weight": "model.layers.*.mlp.up_proj.weight",
        "layers.*.feed_forward.down.weight": "model.layers.*.mlp.down_proj.weight",
        "final_norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    to_keys=to_keys,
    from_keys=from_keys,
    known_keys=frozenset(
        "attention_bias attention_dropout head_dim hidden_act hidden_size intermediate_size max_position_embeddings "
        "mlp_bias num_attention_heads num_hidden_layers num_key_value_heads pretraining_tp rms_norm_eps "
        "rope_parameters rope_scaling rope_theta tie_word_embeddings vocab_size".split()
    ),
)
