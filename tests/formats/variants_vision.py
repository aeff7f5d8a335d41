"""Tiny models of ViT, CLIP, SigLIP and LLaVA, with values that differ from all defaults, and what they are shown."""

from typing import Any

import torch
import transformers
from references import heat_reference
from tiny import random_ids
from tiny_keys import RMS, rotary
from torch import Tensor, nn

_LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 4, "layer_norm_eps": 1e-3}
_TEXT = _LAYERS | {
    "hidden_size": 24,
    "intermediate_size": 40,
    "vocab_size": 64,
    "max_position_embeddings": 11,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 5,
}
_IMAGE = _LAYERS | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
    "layer_norm_eps": 2e-3,
}
_VIT = _IMAGE | {"num_labels": 5}
IMAGE_TOKEN = 62


def _clip(text: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": _TEXT | text, "vision_config": _IMAGE | image, "projection_dim": 20}


def _siglip(text: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    return {"text_config": _TEXT | {"projection_size": 32} | text, "vision_config": _IMAGE | image}


def _llava(text: dict[str, Any], image: str = "clip", **changes: Any) -> dict[str, Any]:
    return {
        "text_config": RMS | rotary() | text,
        "vision_config": _IMAGE | {"model_type": f"{image}_vision_model"},
        "image_token_index": IMAGE_TOKEN,
        **changes,
    }


_LLAMA, _MISTRAL = {"model_type": "llama"}, {"model_type": "mistral", "sliding_window": 8}

# Variant: (class name, keys). The first word of a variant is the family.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", _VIT),
    "vit no biases on queries": ("ViTForImageClassification", _VIT | {"qkv_bias": False, "hidden_act": "quick_gelu"}),
    "vit oblong": ("ViTForImageClassification", _VIT | {"image_size": [12, 21], "patch_size": [4, 5]}),
    "vit two labels": ("ViTForImageClassification", _IMAGE),
    "clip": ("CLIPModel", _clip({}, {})),
    "clip mistaken end": ("CLIPModel", _clip({"eos_token_id": 2}, {})),
    "clip exact gelu": ("CLIPModel", _clip({"hidden_act": "gelu"}, {"hidden_act": "gelu"})),
    "clip image no multiple of patches": ("CLIPModel", _clip({}, {"image_size": 15})),
    "siglip": ("SiglipModel", _siglip({}, {})),
    "siglip width of its own": ("SiglipModel", _siglip({"hidden_size": 32, "projection_size": None}, {})),
    "siglip exact gelu": ("SiglipModel", _siglip({"hidden_act": "gelu"}, {"hidden_act": "gelu"})),
    "siglip image no multiple of patches": ("SiglipModel", _siglip({}, {"image_size": 15})),
    "llava": ("LlavaForConditionalGeneration", _llava(_LLAMA)),
    "llava first vector too": (
        "LlavaForConditionalGeneration",
        _llava(_LLAMA, vision_feature_select_strategy="full", projector_hidden_act="gelu_pytorch_tanh"),
    ),
    "llava last layer": ("LlavaForConditionalGeneration", _llava(_LLAMA, vision_feature_layer=-1)),
    "llava several layers": ("LlavaForConditionalGeneration", _llava(_LLAMA, vision_feature_layer=[-2, 0, 3])),
    "llava mistral, siglip": (
        "LlavaForConditionalGeneration",
        _llava(_MISTRAL, "siglip", vision_feature_select_strategy="full", multimodal_projector_bias=False),
    ),
    "llava mistral, siglip, no pool": (
        "LlavaForConditionalGeneration",
        _llava(_MISTRAL, vision_config=_IMAGE | {"model_type": "siglip_vision_model", "vision_use_head": False}),
    ),
    "llava qwen2, tied": (
        "LlavaForConditionalGeneration",
        _llava({"model_type": "qwen2", "tie_word_embeddings": True}, tie_word_embeddings=True),
    ),
    "llava llama3 positions": (
        "LlavaForConditionalGeneration",
        _llava(_LLAMA | rotary("linear", factor=3.0) | {"head_dim": 12, "attention_bias": True}),
    ),
}


def vision_reference(variant: str, hot: bool, **changes: Any) -> nn.Module:
    """A model of `transformers` with random weights: as it initialises them, or hot."""
    name, keys = VARIANTS[variant]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**keys | changes)).eval()
    if hot:
        heat_reference(model)
    return model


def vision_inputs(variant: str) -> dict[str, Tensor]:
    """What the model of a variant is shown, by the names of the arguments."""
    family, keys = variant.split()[0].strip(","), VARIANTS[variant][1]
    image = keys.get("vision_config", keys)
    height, width = image["image_size"] if isinstance(image["image_size"], list) else [image["image_size"]] * 2
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(3, image["num_channels"], height, width, generator=generator, dtype=torch.float64)
    if family == "vit":
        return {"pixel_values": pixels}
    if family == "siglip":
        return {"input_ids": _texts(end=5, length=11), "pixel_values": pixels}
    if family == "clip":
        ids = _texts(end=keys["text_config"]["eos_token_id"], length=9)
        return {"input_ids": ids, "pixel_values": pixels}
    rows, columns = height // 4, width // 4
    whole = keys.get("vision_feature_select_strategy") == "full"
    has_class_token = image["model_type"] == "clip_vision_model"
    return {"input_ids": texts_with_images(rows * columns + has_class_token - (not whole)), "pixel_values": pixels}


def _texts(end: int, length: int) -> Tensor:
    """Four texts, each ended somewhere and padded with its end, as CLIP's tokenizer does, or with 0."""
    ids = random_ids(4, length, seed=4, vocabulary=50) + 7
    for row, place in enumerate((length - 1, 3, 1, 6)):
        ids[row, place] = end if end != 2 else 63
        ids[row, place + 1 :] = 0 if row % 2 else ids[row, place]
    return ids


def texts_with_images(tokens: int) -> Tensor:
    """Two texts of equal length, with one image and with two, each of so many tokens."""
    ids = random_ids(2, 2 * tokens + 9, seed=5, vocabulary=60)
    ids[0, 4 : 4 + tokens] = IMAGE_TOKEN
    ids[1, 2 : 2 + tokens] = IMAGE_TOKEN
    ids[1, 5 + tokens : 5 + 2 * tokens] = IMAGE_TOKEN
    return ids
