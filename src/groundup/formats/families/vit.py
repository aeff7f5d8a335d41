"""ViT with a classifier on its class token (Dosovitskiy et al. 2021)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Field, read_facts, stack_of, without_effect, write_keys
from groundup.formats.families.gpt import PLAIN, PLAIN_KEYS
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.label_keys import read_labels, write_labels
from groundup.formats.rules import Reshaped, Rule, same, with_biases
from groundup.model.vision_config import ImageClassifierConfig, PatchConfig

NAMES = {
    "image.layers.*.mixer_norm.weight": "vit.encoder.layer.*.layernorm_before.weight",
    "image.layers.*.mixer.query.weight": "vit.encoder.layer.*.attention.attention.query.weight",
    "image.layers.*.mixer.key.weight": "vit.encoder.layer.*.attention.attention.key.weight",
    "image.layers.*.mixer.value.weight": "vit.encoder.layer.*.attention.attention.value.weight",
    "image.layers.*.mixer.output.weight": "vit.encoder.layer.*.attention.output.dense.weight",
    "image.layers.*.feed_forward_norm.weight": "vit.encoder.layer.*.layernorm_after.weight",
    "image.layers.*.feed_forward.up.weight": "vit.encoder.layer.*.intermediate.dense.weight",
    "image.layers.*.feed_forward.down.weight": "vit.encoder.layer.*.output.dense.weight",
    "image.final_norm.weight": "vit.layernorm.weight",
    "head.weight": "classifier.weight",
}
# As transformers 5 holds them in memory, which some files repeat.
NEWER_NAMES = {
    "image.layers.*.mixer_norm.weight": "vit.layers.*.layernorm_before.weight",
    "image.layers.*.mixer.query.weight": "vit.layers.*.attention.q_proj.weight",
    "image.layers.*.mixer.key.weight": "vit.layers.*.attention.k_proj.weight",
    "image.layers.*.mixer.value.weight": "vit.layers.*.attention.v_proj.weight",
    "image.layers.*.mixer.output.weight": "vit.layers.*.attention.o_proj.weight",
    "image.layers.*.feed_forward_norm.weight": "vit.layers.*.layernorm_after.weight",
    "image.layers.*.feed_forward.up.weight": "vit.layers.*.mlp.fc1.weight",
    "image.layers.*.feed_forward.down.weight": "vit.layers.*.mlp.fc2.weight",
}
# Dropout, a pooler and a decoder that other uses of the tower have.
WITHOUT_EFFECT = "attention_probs_dropout_prob hidden_dropout_prob encoder_stride pooler_act pooler_output_size"


def _rules(config: ImageClassifierConfig, names: dict[str, str] = NAMES) -> Sequence[Rule]:
    image = config.image
    filters = Reshaped((image.width, image.channels, *image.patch_size))
    return [
        *with_biases(
            [
                *same(names),
                Rule(("image.patches.weight",), ("vit.embeddings.patch_embeddings.projection.weight",), filters),
            ]
        ),
        Rule(("image.class_token",), ("vit.embeddings.cls_token",), Reshaped((1, 1, image.width))),
        Rule(
            ("image.positions.weight",),
            ("vit.embeddings.position_embeddings",),
            Reshaped((1, image.tokens, image.width)),
        ),
    ]


def _newer_rules(config: ImageClassifierConfig) -> Sequence[Rule]:
    return _rules(config, NAMES | NEWER_NAMES)


def _pair(place: str, default: int) -> Field:
    """Height and width, as one number where they are equal."""
    return Field(place, Keys.pair, default=default, theirs=lambda pair: pair[0] if pair[0] == pair[1] else list(pair))


KEYS = PLAIN_KEYS | {
    **without_effect(WITHOUT_EFFECT),
    "layer_norm_eps": fields.EPS.usually(1e-12),
    "qkv_bias": replace(
        fields.BIASES.usually(True),
        ours=lambda on: fields.ALL if on else ("output",),
        theirs=lambda biased: "query" in biased,
    ),
    "image_size": _pair("image_size", 224),
    "patch_size": _pair("patch_size", 16),
    "num_channels": Field("channels", Keys.size, default=3),
}


def _read(keys: Keys) -> ImageClassifierConfig:
    image = stack_of(PatchConfig, read_facts(KEYS, keys, PLAIN | {"mixer.causal": False}))
    return ImageClassifierConfig("vit", image, read_labels(keys))


def _write(config: ImageClassifierConfig) -> dict[str, Any]:
    return write_keys(KEYS, config.image) | write_labels(config.labels)


VIT = Family("vit", "ViTForImageClassification", _read, _write, _rules, other_rules=(_newer_rules,))
