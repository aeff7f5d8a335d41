"""Image models of a second, and pictures of coloured shapes with captions to show them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from groundup.model.config import LearnedPositions, ModelConfig
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm
from groundup.model.vision_config import (
    AttentionPool,
    DualEncoderConfig,
    ImageClassifierConfig,
    PatchConfig,
    Projection,
)

SIDE = 16
SHAPES = ("square", "stripe", "cross", "frame")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 40),
    "violet": (200, 60, 200),
    "white": (230, 230, 230),
}
NAMES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
WORDS = ("<pad>", "a", "the", "picture", "of", *COLOURS, *SHAPES, "<end>")
END = WORDS.index("<end>")
TEXT_LENGTH = 8

_NORM = Norm("layer", 1e-5, bias=True)
_ALL = ("query", "key", "value", "output")


def _layer(width: int, *, causal: bool) -> LayerSpec:
    attention = Attention(2, 2, width // 2, bias=_ALL, causal=causal)
    return LayerSpec(attention, FeedForward(2 * width, "quick_gelu", gated=False, bias=True), _NORM)


def image_tower(width: int = 32, *, pooled: bool = False) -> PatchConfig:
    """Two layers over patches of 4 × 4."""
    layer = _layer(width, causal=False)
    return PatchConfig(
        width=width,
        layers=(layer,) * 2,
        final_norm=_NORM,
        image_size=(SIDE, SIDE),
        patch_size=(4, 4),
        class_token=not pooled,
        embedding_norm=_NORM,
        pool=AttentionPool(layer.attention, layer.network, _NORM) if pooled else None,
    )


def dual_encoder(*, sigmoid: bool = False) -> DualEncoderConfig:
    """CLIP in small, or SigLIP."""
    text = ModelConfig(
        family="siglip" if sigmoid else "clip",
        vocab_size=len(WORDS),
        width=32,
        layers=(_layer(32, causal=not sigmoid),) * 2,
        final_norm=_NORM,
        tied_head=True,
        max_positions=TEXT_LENGTH,
        learned_positions=LearnedPositions(TEXT_LENGTH),
    )
    return DualEncoderConfig(
        family="siglip" if sigmoid else "clip",
        text=text,
        image=image_tower(pooled=sigmoid),
        text_pooling="last" if sigmoid else "end",
        end_token=None if sigmoid else END,
        text_projection=Projection(32, bias=sigmoid),
        image_projection=None if sigmoid else Projection(32),
        logit_bias=sigmoid,
    )


def classifier() -> ImageClassifierConfig:
    """Of the shapes, whatever their colour."""
    return ImageClassifierConfig("vit", image_tower(), SHAPES)


def caption(colour: str, shape: str, words: Sequence[str] = ("a",)) -> list[int]:
    """Token ids, padded to TEXT_LENGTH."""
    ids = [WORDS.index(word) for word in (*words, colour, shape)] + [END]
    return ids + [0] * (TEXT_LENGTH - len(ids))


def draw(colour: str, shape: str, random: np.random.Generator) -> np.ndarray:
    """The shape in its colour somewhere on a dark, noisy ground: bytes (SIDE, SIDE, 3)."""
    image = random.integers(0, 60, (SIDE, SIDE, 3))
    size = int(random.integers(10, 13))
    top, left = random.integers(0, SIDE - size + 1, 2)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    edge = size / 2 - 2
    mask = {
        "square": np.ones((size, size), bool),
        "stripe": np.abs(y) < size / 5,
        "cross": (np.abs(x) < size / 5) | (np.abs(y) < size / 5),
        "frame": (np.abs(x) > edge) | (np.abs(y) > edge),
    }[shape]
    spot = image[top : top + size, left : left + size]
    spot[mask] = np.array(COLOURS[colour]) + random.integers(-25, 25, (int(mask.sum()), 3))
    return image.clip(0, 255).astype(np.uint8)


def pixels(images: Sequence[np.ndarray]) -> Tensor:
    """(images, 3, SIDE, SIDE), about -1 to 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
