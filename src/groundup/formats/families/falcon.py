"""Falcon (Almazrouei et al. 2023) in its three shapes.

7b: attention and feed-forward network side by side after one norm, one key-value head. 40b and 180b ("new decoder
architecture"): some key-value heads, two norms (11b: one). The small ones trained on RefinedWeb alone: one after the
other, all heads their own, biases, and distances instead of rotary positions (Press et al. 2022).
"""

from collections.abc import Sequence
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import ConfigMap, Facts, Several, fixed, without_effect
from groundup.formats.families.gpt_neox import joined_by_head
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import Placement

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


def _read_positions(keys: Keys, facts: Facts) -> None:
    """Rotary ones, or distances."""
    fields.Rotary(fraction=1.0).read("rope_theta", keys, facts)
    if facts["mixer.rope"].dims is not None:
        raise ValueError("`partial_rotary_factor` must be 1: all dimensions of a head are rotated")
    if keys.flag("alibi", default=False):
        # The distances are added to the scores before these are scaled.
        facts |= {"mixer.rope": None, "mixer.alibi": facts["mixer.head_dim"] ** -0.5}


def _write_positions(config: ModelConfig) -> dict[str, Any]:
    far = config.layers[0].attention.alibi is not None
    return {"alibi": far} | fields.Rotary().write("rope_theta", config)


def _read_shape(keys: Keys, facts: Facts) -> None:
    """Where the norms stand, and how many key-value heads there are."""
    heads = facts["mixer.heads"]
    grouped = keys.flag("new_decoder_architecture", default=False)
    parallel = keys.flag("parallel_attn", default=True)
    one_kv_head = keys.flag("multi_query", default=True)
    kv_heads = keys.optional_size("num_kv_heads") or heads
    norms = keys.optional_size("num_ln_in_parallel_attn") or (2 if grouped else 1)
    if grouped and not parallel:
        raise ValueError("`parallel_attn` must be true where `new_decoder_architecture` is")
    if parallel and norms not in ((1, 2) if grouped else (1,)):
        raise ValueError(f"`num_ln_in_parallel_attn` cannot be {norms} in a model of this architecture")
    if not grouped and not one_kv_head and kv_heads != heads:
        raise ValueError(f"`num_kv_heads` must be {heads}, one for each head, not {kv_heads}")
    facts["mixer.kv_heads"] = 1 if one_kv_head and not grouped else kv_heads
    side_by_side: Placement = "parallel" if norms == 1 else "parallel_two_norms"
    facts["layer.placement"] = side_by_side if parallel else "pre"


def _write_shape(config: ModelConfig) -> dict[str, Any]:
    layer, mixer = config.layers[0], config.layers[0].attention
    two_norms = layer.placement == "parallel_two_norms"
    return {
        "multi_query": mixer.kv_heads == 1,
        "new_decoder_architecture": two_norms or mixer.kv_heads not in (1, mixer.heads),
        "num_kv_heads": mixer.kv_heads,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "parallel_attn": layer.placement != "pre",
    }


KEYS: ConfigMap = {
    **without_effect("attention_dropout ff_factor hidden_dropout"),
    "apply_residual_connection_post_layernorm": fixed(False),
    "hidden_size": fields.WIDTH,
    "num_attention_heads": fields.EqualHeads("hidden_size"),
    "num_hidden_layers": fields.LAYERS,
    "new_decoder_architecture": Several(_read_shape, _write_shape),
    "max_position_embeddings": fields.POSITIONS.usually(2048),
    "alibi": Several(_read_positions, _write_positions),
    "bias": fields.AllBiases(False),
    "layer_norm_epsilon": fields.EPS.usually(1e-5),
    "activation": fields.ACTIVATION.usually("gelu"),
    "ffn_hidden_size": fields.WIDER,
    "vocab_size": fields.VOCABULARY,
    "tie_word_embeddings": fields.TIED.usually(True),
}


FALCON = mapped(
    "falcon",
    "FalconForCausalLM",
    KEYS,
    rules,
    always={"norm.kind": "layer", "norm.bias": True, "feed_forward.gated": False},
    ignored=tuple(
        f"transformer.h.*.self_attention.{name}.inv_freq" for name in ("rotary", "maybe_rotary", "rotary_emb")
    ),
)
