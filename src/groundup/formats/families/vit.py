"""ViT with a classifier on its class token (Dosovitskiy et al. 2021)."""

from collections.abc import Sequence
from typing import Any

from groundup.formats.families.gpt import read_heads
from groundup.formats.families.llama import ACTIVATIONS, ALL, activation_name
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.label_keys import read_labels, write_labels
from groundup.formats.rules import Reshaped, Rule, same, with_biases
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm
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
WITHOUT_EFFECT = (
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "encoder_stride", "pooler_act", "pooler_output_size"),
)


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


def _read(keys: Keys) -> ImageClassifierConfig:
    keys.without_effect(*WITHOUT_EFFECT)
    width, heads, head_dim = read_heads(keys, "hidden_size", "num_attention_heads")
    norm = Norm("layer", keys.positive("layer_norm_eps", default=1e-12), bias=True)
    layer = LayerSpec(
        Attention(
            heads, heads, head_dim, bias=ALL if keys.flag("qkv_bias", default=True) else ("output",), causal=False
        ),
        FeedForward(
            keys.size("intermediate_size"),
            keys.choice("hidden_act", among=ACTIVATIONS, default="gelu"),
            gated=False,
            bias=True,
        ),
        norm,
    )
    image = PatchConfig(
        width=width,
        layers=(layer,) * keys.size("num_hidden_layers"),
        final_norm=norm,
        image_size=keys.pair("image_size", default=224),
        patch_size=keys.pair("patch_size", default=16),
        channels=keys.size("num_channels", default=3),
    )
    return ImageClassifierConfig("vit", image, read_labels(keys))


def _write(config: ImageClassifierConfig) -> dict[str, Any]:
    image = config.image
    layer = image.layers[0]
    return {
        **write_labels(config.labels),
        "hidden_act": activation_name(layer.network.activation),
        "hidden_size": image.width,
        "image_size": _write_pair(image.image_size),
        "intermediate_size": layer.network.width,
        "layer_norm_eps": layer.norm.eps,
        "num_attention_heads": layer.attention.heads,
        "num_channels": image.channels,
        "num_hidden_layers": len(image.layers),
        "patch_size": _write_pair(image.patch_size),
        "qkv_bias": "query" in layer.attention.bias,
    }


def _write_pair(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


VIT = Family("vit", "ViTForImageClassification", _read, _write, _rules, other_rules=(_newer_rules,))
