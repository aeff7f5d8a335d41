"""Falcon (Almazrouei et al. 2023) in its three shapes.

7b: attention and feed-forward network side by side after one norm, one key-value head. 40b and 180b ("new decoder
architecture"): some key-value heads, two norms (11b: one). The small ones trained on RefinedWeb alone: one after the
other, all heads their own, biases, and distances instead of rotary positions (Press et al. 2022).
"""

from collections.abc import Sequence
from typing import Any

from groundup.formats.families.gpt import read_heads
from groundup.formats.families.gpt_neox import joined_by_head
from groundup.formats.families.llama import ACTIVATIONS, ALL, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import read_rope, write_rope
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm, Placement

NAMES = {
    "embedding.weight": "transformer.word_embeddings.weight",
    "layers.*.mixer.output.weight": "transformer.h.*.self_attention.dense.weight",
    "layers.*.feed_forward.up.weight": "transformer.h.*.mlp.dense_h_to_4h.weight",
    "layers.*.feed_forward.down.weight": "transformer.h.*.mlp.dense_4h_to_h.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "head.weight": "lm_head.weight",
}
# What the norms before attention and before the feed-forward network are called.
NORM_NAMES: dict[Placement, tuple[str, str | None]] = {
    "pre": ("input_layernorm", "post_attention_layernorm"),
    "parallel": ("input_layernorm", None),
    "parallel_two_norms": ("ln_attn", "ln_mlp"),
}


def rules(config: ModelConfig) -> Sequence[Rule]:
    """Falcon's names, which depend on how many norms a layer has."""
    first, second = NORM_NAMES[config.layers[0].placement]
    norms = {"layers.*.mixer_norm.weight": f"transformer.h.*.{first}.weight"}
    if second is not None:
        norms["layers.*.feed_forward_norm.weight"] = f"transformer.h.*.{second}.weight"
    fused = joined_by_head("transformer.h.*.self_attention.query_key_value.weight", config.layers[0].attention.kv_heads)
    return with_biases([*same(NAMES | norms), fused])


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder."""
    keys.without_effect("attention_dropout", "ff_factor", "hidden_dropout")
    keys.fixed(apply_residual_connection_post_layernorm=False)
    width, heads, head_dim = read_heads(keys, "hidden_size", "num_attention_heads")
    placement, kv_heads = _read_shape(keys, heads)
    positions = keys.size("max_position_embeddings", default=2048)
    rope = read_rope(keys, head_dim, positions)
    if rope.dims is not None:
        raise ValueError("`partial_rotary_factor` must be 1: all dimensions of a head are rotated")
    far = keys.flag("alibi", default=False)
    bias = keys.flag("bias", default=False)
    norm = Norm("layer", keys.positive("layer_norm_epsilon", default=1e-5), bias=True)
    mixer = Attention(
        heads,
        kv_heads,
        head_dim,
        rope=None if far else rope,
        bias=ALL if bias else (),
        # The distances are added to the scores before these are scaled.
        alibi=head_dim**-0.5 if far else None,
    )
    activation = keys.choice("activation", among=ACTIVATIONS, default="gelu")
    inner = keys.optional_size("ffn_hidden_size") or 4 * width
    layer = LayerSpec(mixer, FeedForward(inner, activation, gated=False, bias=bias), norm, placement)
    return ModelConfig(
        family="falcon",
        vocab_size=keys.size("vocab_size"),
        width=width,
        layers=(layer,) * keys.size("num_hidden_layers"),
        final_norm=norm,
        tied_head=keys.flag("tie_word_embeddings", default=True),
        max_positions=positions,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    layer = config.layers[0]
    mixer = layer.attention
    grouped = layer.placement == "parallel_two_norms" or mixer.kv_heads not in (1, mixer.heads)
    return {
        "activation": activation_name(layer.network.activation),
        "alibi": mixer.alibi is not None,
        "bias": layer.network.bias,
        "ffn_hidden_size": layer.network.width,
        "hidden_size": config.width,
        "layer_norm_epsilon": layer.norm.eps,
        "max_position_embeddings": config.max_positions,
        "multi_query": mixer.kv_heads == 1,
        "new_decoder_architecture": grouped,
        "num_attention_heads": mixer.heads,
        "num_hidden_layers": len(config.layers),
        "num_kv_heads": mixer.kv_heads,
        "num_ln_in_parallel_attn": 2 if layer.placement == "parallel_two_norms" else 1,
        "parallel_attn": layer.placement != "pre",
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        **({} if mixer.rope is None else write_rope(mixer.rope, mixer.head_dim)),
    }


def _read_shape(keys: Keys, heads: int) -> tuple[Placement, int]:
    """Where the norms stand, and how many key-value heads there are."""
    grouped = keys.flag("new_decoder_architecture", default=False)
    parallel = keys.flag("parallel_attn", default=True)
    one_kv_head = keys.flag("multi_query", default=True)
    kv_heads = keys.optional_size("num_kv_heads") or heads
    norms = keys.optional_size("num_ln_in_parallel_attn") or (2 if grouped else 1)
    if grouped and not parallel:
        raise ValueError("`parallel_attn` must be true where `new_decoder_architecture` is")
    if parallel and norms not in ((1, 2) if grouped else (1,)):
        raise ValueError(f"`num_ln_in_parallel_attn` cannot be {norms} in a model of this architecture")
    if grouped:
        return ("parallel" if norms == 1 else "parallel_two_norms"), kv_heads
    if not one_kv_head and kv_heads != heads:
        raise ValueError(f"`num_kv_heads` must be {heads}, one for each head, not {kv_heads}")
    return ("parallel" if parallel else "pre"), 1 if one_kv_head else heads


FALCON = Family(
    "falcon",
    "FalconForCausalLM",
    read,
    write,
    rules,
    tuple(f"transformer.h.*.self_attention.{name}.inv_freq" for name in ("rotary", "maybe_rotary", "rotary_emb")),
)
