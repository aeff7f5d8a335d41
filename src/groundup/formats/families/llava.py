"""LLaVA: an image tower, two linear layers, and a language model of another family (Liu et al. 2023)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import clip, llama
from groundup.formats.family import Family
from groundup.formats.fields import ACTIVATIONS, activation_name
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, placed, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.vision_config import PatchConfig, VisionLanguageConfig

TEXT_FAMILIES: Mapping[str, Family[ModelConfig]] = {
    family.name: family for family in (llama.LLAMA, llama.MISTRAL, llama.QWEN2, llama.QWEN3)
}
# What the keys of a language model are where a file leaves them out, as version 4 does for those with these values.
_SIZES = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _SIZES | {"intermediate_size": 11_008, "vocab_size": 32_000},
    "mistral": _SIZES | {"intermediate_size": 14_336, "num_key_value_heads": 8, "vocab_size": 32_000},
    "qwen2": _SIZES | {"intermediate_size": 22_016, "num_key_value_heads": 32, "vocab_size": 151_936},
    "qwen3": _SIZES | {"intermediate_size": 22_016, "num_key_value_heads": 32, "vocab_size": 151_936},
}
IMAGE_READERS: Mapping[str, tuple[Callable[[Keys], PatchConfig], Mapping[str, Any]]] = {
    "clip_vision_model": (clip.read_clip_image, clip.CLIP_IMAGE),
    "siglip_vision_model": (clip.read_siglip_image, clip.SIGLIP_IMAGE),
}
# The image tower of a file that says nothing of it.
DEFAULT_IMAGE = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
FEATURE_CHOICES = {"default": False, "full": True}
PROJECTOR_NAMES = {
    "projector_in.weight": "multi_modal_projector.linear_1.weight",
    "projector_out.weight": "multi_modal_projector.linear_2.weight",
}
# A head that is tied, which some files hold nevertheless.
COPIES = (
    ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    ("lm_head.weight", "model.language_model.embed_tokens.weight"),
)


def _rules(config: VisionLanguageConfig, tower: str = "vision_tower.vision_model.") -> list[Rule]:
    """tower: where the image tower lies; transformers 5 leaves out the second part of it."""
    return [*placed(_text_rules(config), "text.", "language_model."), *_seeing_rules(config, tower)]


def _memory_rules(config: VisionLanguageConfig, tower: str = "vision_tower.") -> list[Rule]:
    """The names that transformers 5 has in memory, which some files repeat."""
    text = [replace(rule, disk=tuple(map(_memory_name, rule.disk))) for rule in _text_rules(config)]
    return [*placed(text, "text.", ""), *placed(_seeing_rules(config, tower), "", "model.")]


def _seeing_rules(config: VisionLanguageConfig, tower: str) -> list[Rule]:
    return [*placed(clip.image_rules(config.image), "image.", tower), *with_biases(same(PROJECTOR_NAMES))]


def _text_rules(config: VisionLanguageConfig) -> Sequence[Rule]:
    return TEXT_FAMILIES[config.text.family].rules(config.text)


def _memory_name(name: str) -> str:
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _read(keys: Keys) -> VisionLanguageConfig:
    keys.without_effect("ignore_index", "image_seq_length", "vocab_size")
    text, image = _read_text(keys), _read_image(keys)
    return VisionLanguageConfig(
        family="llava",
        text=text,
        image=image,
        image_token=keys.count("image_token_index", "image_token_id", default=32_000),
        feature_layers=_from_end(keys.integers("vision_feature_layer", default=-2), len(image.layers) + 1),
        keeps_first=keys.choice("vision_feature_select_strategy", among=FEATURE_CHOICES, default="default"),
        activation=keys.choice("projector_hidden_act", among=ACTIVATIONS, default="gelu"),
        bias=keys.flag("multimodal_projector_bias", default=True),
    )


def _from_end(numbers: Iterable[int], count: int) -> tuple[int, ...]:
    """Numbers of `count` outputs, of which negative ones are counted from the last."""
    return tuple(number if number >= 0 else number + count for number in numbers)


def _read_text(keys: Keys) -> ModelConfig:
    kind = _kind(keys, "text_config", TEXT_FAMILIES, "llama")
    text = TEXT_FAMILIES[kind].read(clip.read_part(keys, "text_config", TEXT_DEFAULTS[kind]))
    # Either place ties the head.
    return replace(text, tied_head=keys.flag("tie_word_embeddings", default=False) or text.tied_head)


def _read_image(keys: Keys) -> PatchConfig:
    read, defaults = IMAGE_READERS[_kind(keys, "vision_config", IMAGE_READERS, "clip_vision_model")]
    absent = keys.table("vision_config") is None
    return read(clip.read_part(keys, "vision_config", {**defaults, **(DEFAULT_IMAGE if absent else {})}))


def _kind(keys: Keys, name: str, known: Iterable[str], default: str) -> str:
    """The family of a part. Raises ValueError for one that is not known here."""
    part = keys.table(name)
    return default if part is None else part.choice("model_type", among={one: one for one in known}, default=default)


def _write(config: VisionLanguageConfig) -> dict[str, Any]:
    layers = [layer - len(config.image.layers) - 1 for layer in config.feature_layers]
    text = config.text
    return {
        "image_seq_length": config.image_tokens,
        "image_token_index": config.image_token,
        "multimodal_projector_bias": config.bias,
        "projector_hidden_act": activation_name(config.activation),
        "text_config": TEXT_FAMILIES[text.family].write(text) | {"model_type": text.family},
        "tie_word_embeddings": text.tied_head,
        "vision_config": clip.write_image(config.image),
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
        "vision_feature_select_strategy": "full" if config.keeps_first else "default",
    }


LLAVA = Family(
    "llava",
    "LlavaForConditionalGeneration",
    _read,
    _write,
    _rules,
    ignored=(*clip.POSITION_NUMBERS, "*.rotary_emb.inv_freq"),
    copies=COPIES,
    other_rules=(
        lambda config: _rules(config, "vision_tower."),
        _memory_rules,
        lambda config: _memory_rules(config, "vision_tower.vision_model."),
    ),
)
