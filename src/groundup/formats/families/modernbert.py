"""ModernBERT, as masked language model, as classifier of sequences and without a head.

Layer norm before each sublayer, but not before the first attention, as the embedding is normed already; rotary
positions; GeGLU; in two of three layers a token sees only its neighbours, with a rotary base of their own.
Source: Warner et al. 2024.
"""

from dataclasses import replace
from typing import Any

from groundup.formats.families.bert import EncoderConfig, encoder_of, encoder_rules, with_head, write_head
from groundup.formats.families.gpt import read_heads
from groundup.formats.families.llama import (
    ACTIVATIONS,
    ALL,
    activation_name,
    with_ropes,
    with_windows,
    write_ropes_by_kind,
    write_windows,
)
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import read_ropes
from groundup.formats.rules import Joined, Rule, same
from groundup.model.config import ClassifierConfig, HeadTransform, ModelConfig
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm

NAMES = {
    "embedding.weight": "model.embeddings.tok_embeddings.weight",
    "embedding_norm.weight": "model.embeddings.norm.weight",
    "layers.*.mixer_norm.weight": "model.layers.*.attn_norm.weight",
    "layers.*.mixer.output.weight": "model.layers.*.attn.Wo.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.mlp_norm.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.mlp.Wo.weight",
    "final_norm.weight": "model.final_norm.weight",
}
FUSED = {
    "model.layers.*.attn.Wqkv.weight": ("mixer.query", "mixer.key", "mixer.value"),
    "model.layers.*.mlp.Wi.weight": ("feed_forward.gate", "feed_forward.up"),  # the activation is of the first half
}
TRANSFORM = {"transform.linear.weight": "head.dense.weight", "transform.norm.weight": "head.norm.weight"}
# v4's keys for the rotary bases, and what they are where a file does not say.
THETAS = {
    "full_attention": ("global_rope_theta", 160_000.0),
    "sliding_attention": ("local_rope_theta", 10_000.0),
}
POOLINGS = {"cls": "first", "mean": "mean"}
# Dropout, tokens' ids, how weights start, how `transformers` computes; ModernBERT's own files hold two keys of BERT's.
WITHOUT_EFFECT = (
    "attention_dropout classifier_dropout cls_token_id deterministic_flash_attn embedding_dropout "
    "gradient_checkpointing initializer_cutoff_factor layer_norm_eps mlp_dropout num_labels position_embedding_type "
    "reference_compile repad_logits_with_grad sep_token_id sparse_pred_ignore_index sparse_prediction"
).split()


def modernbert_rules(config: EncoderConfig) -> list[Rule]:
    """ModernBERT's names, with queries, keys and values as one, and both halves of the gated network."""
    fused = [
        Rule(tuple(f"layers.*.{part}.weight" for part in parts), (disk,), Joined()) for disk, parts in FUSED.items()
    ]
    masked, classifier = ({"head.weight": f"{name}.weight"} for name in ("decoder", "classifier"))
    rules = encoder_rules(config, "model.", [*same(NAMES), *fused], TRANSFORM | masked, TRANSFORM | classifier)
    return [*rules, Rule(("head_bias",), ("decoder.bias",))]


def _read_modernbert(keys: Keys) -> EncoderConfig:
    keys.without_effect(*WITHOUT_EFFECT)
    keys.off("rope_scaling")  # of which v4 knew nothing and v5 makes `rope_parameters`
    width, heads, head_dim = read_heads(keys, "hidden_size", "num_attention_heads")
    positions = keys.size("max_position_embeddings", default=8192)
    norm = Norm("layer", keys.positive("norm_eps", default=1e-5), keys.flag("norm_bias", default=False))
    layer = LayerSpec(
        Attention(heads, heads, head_dim, bias=ALL if keys.flag("attention_bias", default=False) else (), causal=False),
        FeedForward(
            keys.size("intermediate_size"),
            keys.choice("hidden_activation", among=ACTIVATIONS, default="gelu"),
            gated=True,
            bias=keys.flag("mlp_bias", default=False),
        ),
        norm,
    )
    encoder = ModelConfig(
        family="modernbert",
        vocab_size=keys.size("vocab_size"),
        width=width,
        layers=(replace(layer, mixer_norm=False), *(layer,) * (keys.size("num_hidden_layers") - 1)),
        final_norm=norm,
        embedding_norm=norm,
        tied_head=True,
        max_positions=positions,
    )
    activation = keys.choice("classifier_activation", among=ACTIVATIONS, default="gelu")
    head = HeadTransform(activation, norm, bias=keys.flag("classifier_bias", default=False))
    pooling = keys.choice("classifier_pooling", among=POOLINGS, default="cls")
    decoder_bias = keys.flag("decoder_bias", default=True)
    whole = with_head(keys, _with_kinds(keys, encoder, head_dim), "ModernBert", head, head, pooling=pooling)
    if isinstance(whole, ClassifierConfig) or whole.head_transform is None:
        return whole
    return replace(whole, head_bias=decoder_bias)


def _with_kinds(keys: Keys, encoder: ModelConfig, head_dim: int) -> ModelConfig:
    """The encoder with the windows and rotary positions of each layer's kind."""
    interval = keys.size("global_attn_every_n_layers", default=3)
    kinds = keys.texts("layer_types") or _kinds(len(encoder.layers), interval)
    across = keys.size("local_attention", default=128)
    if across < 2:
        raise ValueError(f"`local_attention` must be at least 2, so that a token sees its neighbours, not {across}")
    ropes = read_ropes(keys, head_dim, encoder.max_positions, THETAS)
    return with_ropes(with_windows(encoder, across // 2, kinds), ropes, kinds)


def _kinds(layers: int, interval: int) -> list[str]:
    return ["sliding_attention" if index % interval else "full_attention" for index in range(layers)]


def _write_modernbert(config: EncoderConfig) -> dict[str, Any]:
    encoder = encoder_of(config)
    head = config.head_transform if isinstance(config, ModelConfig) else config.transform
    layer, windows = encoder.layers[0], write_windows(encoder)
    kinds, reach = windows["layer_types"], windows["sliding_window"]
    intervals = [interval for interval in range(1, len(kinds) + 1) if _kinds(len(kinds), interval) == kinds]
    ropes = write_ropes_by_kind(encoder, THETAS)
    ropes.pop("rope_scaling")
    keys: dict[str, Any] = {
        "attention_bias": bool(layer.attention.bias),
        "hidden_activation": activation_name(layer.network.activation),
        "hidden_size": encoder.width,
        "intermediate_size": layer.network.width,
        "layer_types": kinds,
        "max_position_embeddings": encoder.max_positions,
        "mlp_bias": layer.network.bias,
        "norm_bias": layer.norm.bias,
        "norm_eps": layer.norm.eps,
        "num_attention_heads": layer.attention.heads,
        "num_hidden_layers": len(encoder.layers),
        "vocab_size": encoder.vocab_size,
    }
    keys |= {} if reach is None else {"local_attention": 2 * reach}
    # v4 knows no other pattern than one layer in so many.
    keys |= {"global_attn_every_n_layers": intervals[0]} if intervals else {}
    if head is not None:
        keys |= {"classifier_activation": activation_name(head.activation), "classifier_bias": head.bias}
    if isinstance(config, ModelConfig):
        keys |= {} if head is None else {"decoder_bias": config.head_bias}
    else:
        keys["classifier_pooling"] = next(name for name, ours in POOLINGS.items() if ours == config.pooling)
    return keys | ropes | write_head(config, "ModernBert")


MODERNBERT = Family("modernbert", "ModernBertForMaskedLM", _read_modernbert, _write_modernbert, modernbert_rules)
