"""CLIP and SigLIP: a text tower and an image tower whose vectors are compared.

Sources: Radford et al. 2021 (causal text, pooled where it ends; class token; softmax over a batch); Zhai et al. 2023
(text that sees both sides, pooled at its last token; attention pool; a sigmoid for each pair, with a bias).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import (
    OFF,
    Facts,
    Field,
    layers_of,
    model_of,
    norm_of,
    read_facts,
    stack_of,
    without_effect,
    write_keys,
)
from groundup.formats.families.gpt import PLAIN, PLAIN_KEYS
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Joined, Reshaped, Rule, placed, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.vision_config import AttentionPool, DualEncoderConfig, PatchConfig, Projection

# What a tower's keys are where a file leaves them out, as version 4 does for those that have these values.
CLIP_TEXT = {
    "eos_token_id": 49_407,
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49_408,
}
CLIP_IMAGE = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 32,
}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIGLIP_IMAGE = CLIP_IMAGE | _SIGLIP | {"patch_size": 16, "vision_use_head": True}
SIGLIP_TEXT = _SIGLIP | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 64,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 32_000,
}
# What older files repeat for each tower: how it was trained, and how text would be generated.
WITHOUT_EFFECT = (
    "attention_dropout bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample dropout "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id initializer_factor length_penalty max_length min_length no_repeat_ngram_size num_beam_groups "
    "num_beams num_return_sequences output_scores prefix remove_invalid_values repetition_penalty "
    "return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss "
    "tie_encoder_decoder tie_word_embeddings top_k top_p torchscript typical_p use_bfloat16"
)
# The number that OpenAI's models were first converted with as the one that ends a text, though it is 49,407. Where a
# file has it, the token with the highest number stands for a text.
MISTAKEN_END = 2

LAYER_NAMES = {
    "layers.*.mixer_norm.weight": "encoder.layers.*.layer_norm1.weight",
    "layers.*.mixer.query.weight": "encoder.layers.*.self_attn.q_proj.weight",
    "layers.*.mixer.key.weight": "encoder.layers.*.self_attn.k_proj.weight",
    "layers.*.mixer.value.weight": "encoder.layers.*.self_attn.v_proj.weight",
    "layers.*.mixer.output.weight": "encoder.layers.*.self_attn.out_proj.weight",
    "layers.*.feed_forward_norm.weight": "encoder.layers.*.layer_norm2.weight",
    "layers.*.feed_forward.up.weight": "encoder.layers.*.mlp.fc1.weight",
    "layers.*.feed_forward.down.weight": "encoder.layers.*.mlp.fc2.weight",
    "positions.weight": "embeddings.position_embedding.weight",
}
TEXT_NAMES = LAYER_NAMES | {
    "embedding.weight": "embeddings.token_embedding.weight",
    "final_norm.weight": "final_layer_norm.weight",
}
IMAGE_NAMES = LAYER_NAMES | {
    "class_token": "embeddings.class_embedding",
    "embedding_norm.weight": "pre_layrnorm.weight",  # spelt so on disk
    "final_norm.weight": "post_layernorm.weight",
    "pool.attention.output.weight": "head.attention.out_proj.weight",
    "pool.norm.weight": "head.layernorm.weight",
    "pool.feed_forward.up.weight": "head.mlp.fc1.weight",
    "pool.feed_forward.down.weight": "head.mlp.fc2.weight",
}
POOL_PROJECTIONS = ("pool.attention.query", "pool.attention.key", "pool.attention.value")
# Old files hold the numbers from 0 on.
POSITION_NUMBERS = ("*.embeddings.position_ids",)


def read_part(keys: Keys, name: str, defaults: Mapping[str, Any]) -> Keys:
    """The keys of a tower, in which nothing may be on that would change what it computes."""
    part = keys.section(name, defaults)
    read_facts(TOWER_KEYS, part)
    return part


def _square(place: str) -> Field:
    return Field(place, Keys.size, ours=lambda size: (size, size), theirs=lambda size: size[0])


# Of any tower.
TOWER_KEYS = without_effect(WITHOUT_EFFECT) | dict.fromkeys(
    ("add_cross_attention", "cross_attention_hidden_size", "pruned_heads"), OFF
)
TEXT_KEYS = PLAIN_KEYS | {"max_position_embeddings": fields.POSITIONS, "vocab_size": fields.VOCABULARY}
IMAGE_KEYS = PLAIN_KEYS | {
    "image_size": _square("image_size"),
    "patch_size": _square("patch_size"),
    "num_channels": Field("channels", Keys.size),
}
CLIP_IMAGE_KEYS = without_effect("projection_dim vocab_size") | IMAGE_KEYS
SIGLIP_IMAGE_KEYS = IMAGE_KEYS | {
    "vision_use_head": Field("pool", Keys.flag, ours=lambda on: _pool if on else None, theirs=lambda pool: bool(pool))
}
LAYERS = PLAIN | {"mixer.bias": fields.ALL}
TEXT = LAYERS | {"tied_head": True, "learned_positions": fields.learned_positions()}
IMAGE = LAYERS | {"mixer.causal": False}


def read_clip_image(keys: Keys) -> PatchConfig:
    """CLIP's image tower, from the keys of its `vision_config`."""
    always = IMAGE | {"patch_bias": False, "class_token": True, "embedding_norm": norm_of}
    return stack_of(PatchConfig, read_facts(CLIP_IMAGE_KEYS, keys, always))


def read_siglip_image(keys: Keys) -> PatchConfig:
    """SigLIP's image tower, from the keys of its `vision_config`."""
    return stack_of(PatchConfig, read_facts(SIGLIP_IMAGE_KEYS, keys, IMAGE | {"class_token": False}))


def write_image(config: PatchConfig) -> dict[str, Any]:
    """The keys that `read_clip_image` reads, or `read_siglip_image`."""
    if config.class_token:
        return write_keys(CLIP_IMAGE_KEYS, config) | {"model_type": "clip_vision_model"}
    return write_keys(SIGLIP_IMAGE_KEYS, config) | {"model_type": "siglip_vision_model"}


def _pool(facts: Facts) -> AttentionPool:
    layer = layers_of(facts)[0]
    return AttentionPool(layer.attention, layer.network, layer.norm)


def image_rules(config: PatchConfig) -> list[Rule]:
    """The names within an image tower of either kind."""
    filters = Reshaped((config.width, config.channels, *config.patch_size))
    return [
        *with_biases([*same(IMAGE_NAMES), Rule(("patches.weight",), ("embeddings.patch_embedding.weight",), filters)]),
        Rule(("pool.probe",), ("head.probe",), Reshaped((1, 1, config.width))),
        *(
            Rule(tuple(f"{name}.{kind}" for name in POOL_PROJECTIONS), (f"head.attention.in_proj_{kind}",), Joined())
            for kind in ("weight", "bias")
        ),
    ]


def _write_text(config: ModelConfig, kind: str) -> dict[str, Any]:
    return write_keys(TEXT_KEYS, config) | {"model_type": kind}


def _rules(config: DualEncoderConfig) -> list[Rule]:
    """What the two families share; a number by itself is a row of one in SigLIP's files."""
    number = Reshaped((1,) if config.logit_bias else ())
    return [
        *placed(with_biases(same(TEXT_NAMES)), "text.", "text_model."),
        *placed(image_rules(config.image), "image.", "vision_model."),
        *(Rule((name,), (name,), number) for name in ("logit_scale", "logit_bias")),
    ]


def _clip_rules(config: DualEncoderConfig) -> Sequence[Rule]:
    projections = {
        "text_projection.weight": "text_projection.weight",
        "image_projection.weight": "visual_projection.weight",
    }
    return [*_rules(config), *same(projections)]


def _read_clip(keys: Keys) -> DualEncoderConfig:
    keys.without_effect("initializer_factor", "logit_scale_init_value")
    text, image = _clip_part(keys, "text_config", CLIP_TEXT), _clip_part(keys, "vision_config", CLIP_IMAGE)
    text.without_effect("projection_dim")
    end, projection = text.count("eos_token_id"), Projection(keys.size("projection_dim", default=512))
    return DualEncoderConfig(
        family="clip",
        text=model_of("clip", read_facts(TEXT_KEYS, text, TEXT)),
        image=read_clip_image(image),
        text_pooling="highest" if end == MISTAKEN_END else "end",
        end_token=None if end == MISTAKEN_END else end,
        text_projection=projection,
        image_projection=projection,
    )


def _clip_part(keys: Keys, name: str, defaults: Mapping[str, Any]) -> Keys:
    """The keys of a tower: those of `…_config_dict` alone, where an old file has that beside them."""
    if keys.table(f"{name}_dict") is None:
        return read_part(keys, name, defaults)
    keys.without_effect(name)
    return read_part(keys, f"{name}_dict", defaults)


def _write_clip(config: DualEncoderConfig) -> dict[str, Any]:
    end = MISTAKEN_END if config.end_token is None else config.end_token
    projection = {"projection_dim": config.width}
    return projection | {
        "text_config": _write_text(config.text, "clip_text_model") | projection | {"eos_token_id": end},
        "vision_config": write_image(config.image) | projection,
    }


def _siglip_rules(config: DualEncoderConfig) -> Sequence[Rule]:
    return [*_rules(config), *with_biases(same({"text_projection.weight": "text_model.head.weight"}))]


def _read_siglip(keys: Keys) -> DualEncoderConfig:
    keys.without_effect("initializer_factor")
    text_keys = read_part(keys, "text_config", SIGLIP_TEXT)
    text = model_of("siglip", read_facts(TEXT_KEYS, text_keys, TEXT | {"mixer.causal": False}))
    return DualEncoderConfig(
        family="siglip",
        text=text,
        image=read_siglip_image(read_part(keys, "vision_config", SIGLIP_IMAGE)),
        text_pooling="last",
        text_projection=Projection(text_keys.optional_size("projection_size") or text.width, bias=True),
        image_projection=None,
        logit_bias=True,
    )


def _write_siglip(config: DualEncoderConfig) -> dict[str, Any]:
    return {
        "text_config": _write_text(config.text, "siglip_text_model") | {"projection_size": config.width},
        "vision_config": write_image(config.image),
    }


CLIP = Family("clip", "CLIPModel", _read_clip, _write_clip, _clip_rules, POSITION_NUMBERS)
SIGLIP = Family("siglip", "SiglipModel", _read_siglip, _write_siglip, _siglip_rules, POSITION_NUMBERS)
