"""ModernBERT, as masked language model, as classifier of sequences and without a head.

Layer norm before each sublayer, but not before the first attention, as the embedding is normed already; rotary
positions; GeGLU; in two of three layers a token sees only its neighbours, with a rotary base of their own.
Source: Warner et al. 2024.
"""

from dataclasses import replace
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import (
    OFF,
    ConfigMap,
    Facts,
    Field,
    PerLayer,
    Several,
    model_of,
    norm_of,
    read_facts,
    without_effect,
    write_keys,
)
from groundup.formats.families.bert import EncoderConfig, encoder_of, encoder_rules, with_head, write_head
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Rule, same
from groundup.model.config import ClassifierConfig, HeadTransform, ModelConfig

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
)


def modernbert_rules(config: EncoderConfig) -> list[Rule]:
    """ModernBERT's names, with queries, keys and values as one, and both halves of the gated network."""
    fused = [
        Rule(tuple(f"layers.*.{part}.weight" for part in parts), (disk,), Joined()) for disk, parts in FUSED.items()
    ]
    masked, classifier = ({"head.weight": f"{name}.weight"} for name in ("decoder", "classifier"))
    rules = encoder_rules(config, "model.", [*same(NAMES), *fused], TRANSFORM | masked, TRANSFORM | classifier)
    return [*rules, Rule(("head_bias",), ("decoder.bias",))]


def _read_windows(keys: Keys, facts: Facts) -> None:
    """How far a token sees in layers with a window, and which have one: all but every third."""
    interval = keys.size("global_attn_every_n_layers", default=3)
    across = keys.size("local_attention", default=128)
    if across < 2:
        raise ValueError(f"`local_attention` must be at least 2, so that a token sees its neighbours, not {across}")
    fields.read_windows(keys, facts, across // 2, _windowed(facts["layers"], interval))


def _windowed(layers: int, interval: int) -> list[bool]:
    return [index % interval != 0 for index in range(layers)]


def _write_windows(config: ModelConfig) -> dict[str, Any]:
    """`layer_types`, and for v4, which knows no other pattern, one layer in so many."""
    written = fields.write_windows(config)
    reach, windowed = written.pop("sliding_window"), [kind != fields.FULL for kind in written["layer_types"]]
    intervals = [one for one in range(1, len(windowed) + 1) if _windowed(len(windowed), one) == windowed]
    written |= {"global_attn_every_n_layers": intervals[0]} if intervals else {}
    return written if reach is None else written | {"local_attention": 2 * reach}


KEYS: ConfigMap = {
    **without_effect(WITHOUT_EFFECT),
    "rope_scaling": OFF,  # of which v4 knew nothing and v5 makes `rope_parameters`
    "hidden_size": fields.WIDTH,
    "num_attention_heads": fields.EqualHeads("hidden_size"),
    "num_hidden_layers": fields.LAYERS,
    "max_position_embeddings": fields.POSITIONS.usually(8192),
    "local_attention": Several(_read_windows, _write_windows),
    "rope_parameters": fields.RotaryByKind(THETAS),
    "norm_eps": fields.EPS.usually(1e-5),
    "norm_bias": Field("norm.bias", Keys.flag, default=False),
    "attention_bias": fields.BIASES.usually(False),
    "intermediate_size": fields.INNER,
    "hidden_activation": fields.ACTIVATION.usually("gelu"),
    "mlp_bias": fields.NETWORK_BIAS.usually(False),
    "vocab_size": fields.VOCABULARY,
}
ALWAYS: Facts = {
    "norm.kind": "layer",
    "mixer.causal": False,
    "feed_forward.gated": True,
    # The embedding is normed already.
    "embedding_norm": norm_of,
    "layer.mixer_norm": lambda facts: PerLayer(tuple(index > 0 for index in range(facts["layers"]))),
    "tied_head": True,
}


def _read_modernbert(keys: Keys) -> EncoderConfig:
    encoder = model_of("modernbert", read_facts(KEYS, keys, ALWAYS))
    activation = keys.choice("classifier_activation", among=fields.ACTIVATIONS, default="gelu")
    head = HeadTransform(activation, encoder.final_norm, bias=keys.flag("classifier_bias", default=False))
    pooling = keys.choice("classifier_pooling", among=POOLINGS, default="cls")
    decoder_bias = keys.flag("decoder_bias", default=True)
    whole = with_head(keys, encoder, "ModernBert", head, head, pooling=pooling)
    if isinstance(whole, ClassifierConfig) or whole.head_transform is None:
        return whole
    return replace(whole, head_bias=decoder_bias)


def _write_modernbert(config: EncoderConfig) -> dict[str, Any]:
    keys = write_keys(KEYS, encoder_of(config)) | write_head(config, "ModernBert")
    keys.pop("rope_scaling")
    head = config.head_transform if isinstance(config, ModelConfig) else config.transform
    if head is not None:
        keys |= {"classifier_activation": fields.activation_name(head.activation), "classifier_bias": head.bias}
    if isinstance(config, ClassifierConfig):
        keys["classifier_pooling"] = next(name for name, ours in POOLINGS.items() if ours == config.pooling)
    elif head is not None:
        keys["decoder_bias"] = config.head_bias
    return keys


MODERNBERT = Family("modernbert", "ModernBertForMaskedLM", _read_modernbert, _write_modernbert, modernbert_rules)
