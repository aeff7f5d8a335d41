"""Image towers: how images are cut, what is taken of the layers, and which configurations make no sense."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import heat
from tiny_vision import classifier, dual_encoder, image_tower

from groundup.model.build import build
from groundup.model.config import ModelConfig
from groundup.model.presets import build_config
from groundup.model.vision import ImageTower, cut_patches
from groundup.model.vision_config import PatchConfig, Projection, VisionLanguageConfig


def hot_tower(config: PatchConfig) -> ImageTower:
    tower = ImageTower(config)
    heat(tower, seed=0)
    return tower.double()


@pytest.mark.parametrize(("image", "patch"), [((8, 8), (4, 4)), ((9, 14), (3, 4)), ((7, 5), (2, 5))])
def test_patches_times_a_matrix_are_a_convolution(image: tuple[int, int], patch: tuple[int, int]):
    config = replace(image_tower(), image_size=image, patch_size=patch)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *image, generator=generator, dtype=torch.float64)
    filters = torch.randn(6, 3, *patch, generator=generator, dtype=torch.float64)
    expected = F.conv2d(pixels, filters, stride=patch)
    assert expected.shape[2:] == config.grid
    torch.testing.assert_close(cut_patches(pixels, config) @ filters.flatten(1).T, expected.flatten(2).mT)


def test_features_are_what_each_layer_gives():
    tower = hot_tower(image_tower())
    (pixels,) = tower.example()
    x = tower.embed(pixels)
    outputs = [
        x,
        tower.run(x, torch.arange(17).expand(2, -1), depth=1),
        tower.run(x, torch.arange(17).expand(2, -1), depth=2),
    ]
    assert torch.equal(tower.features(pixels, (2, 0, 1)), torch.cat((outputs[2], outputs[0], outputs[1]), dim=-1))
    assert torch.equal(tower.final_norm(outputs[2]), tower(pixels))
    assert not torch.allclose(outputs[2], tower(pixels))


def test_a_pool_looks_at_all_patches_alike():
    """Attention without positions: in another order the patches give the same vector, in other values another."""
    tower = hot_tower(image_tower(pooled=True))
    x = tower(*tower.example())
    pooled = tower.pool(x)
    torch.testing.assert_close(tower.pool(x.flip(1)), pooled)
    for token in range(x.shape[1]):
        changed = x.clone()
        changed[:, token] += 1
        assert not torch.allclose(tower.pool(changed), pooled)


@pytest.mark.parametrize(
    "config", [classifier(), dual_encoder(), dual_encoder(sigmoid=True)], ids=lambda one: one.family
)
def test_bfloat16_activations_are_near_those_of_float32(config: Any):
    model = build(config)
    heat(model, seed=0)
    inputs = model.example()
    wide = model(*inputs)
    for part in (model.image, getattr(model, "text", model.image)):
        part.compute_dtype = torch.bfloat16
    narrow = model(*inputs)
    for one, other in zip(
        *((given if isinstance(given, tuple) else (given,)) for given in (narrow, wide)), strict=True
    ):
        assert one.dtype == other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).norm() < 0.1 * other.norm()


def _text(**changes: Any) -> ModelConfig:
    return replace(build_config("llama", depth=2, vocab_size=64, context=64, width=32, head_dim=16), **changes)


def _vlm(**changes: Any) -> Any:
    fields = {"family": "llava", "text": _text(), "image": image_tower(), "image_token": 3, "feature_layers": (1,)}
    return lambda: VisionLanguageConfig(**{**fields, **changes})


MEANINGLESS = {
    "a patch of (17, 4) pixels does not fit": lambda: replace(image_tower(), patch_size=(17, 4)),
    "patches must hold pixels": lambda: replace(image_tower(), channels=0),
    "must see all patches": lambda: replace(image_tower(), layers=dual_encoder().text.layers),
    "in no order": lambda: replace(
        image_tower(pooled=True).pool, attention=replace(image_tower(pooled=True).pool.attention, causal=True)
    ),
    "at least one label": lambda: replace(classifier(), labels=()),
    "makes one vector of an image": lambda: replace(classifier(), image=replace(image_tower(), class_token=False)),
    "makes one vector of each": lambda: replace(dual_encoder(), image=replace(image_tower(), class_token=False)),
    "32 numbers for texts and 16 for images": lambda: replace(dual_encoder(), image_projection=Projection(16)),
    "only for that": lambda: replace(dual_encoder(), end_token=None),
    "layers 0 to 2, not from [3]": _vlm(feature_layers=(3,)),
    "the image token 64": _vlm(image_token=64),
    "changes its embedding": _vlm(text=_text(embedding_scale=2.0)),
    "nothing left": _vlm(image=replace(image_tower(pooled=True), patch_size=(16, 16))),
}


@pytest.mark.parametrize("message", MEANINGLESS)
def test_what_makes_no_sense_is_refused_when_it_is_built(message: str):
    with pytest.raises(ValueError) as refusal:
        MEANINGLESS[message]()
    assert message in str(refusal.value)
