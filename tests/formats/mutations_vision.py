"""Deliberate mistakes in image towers and what is built on them: the comparison with the reference must see each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from groundup.model.build import AnyModel, build
from groundup.model.config import StackConfig
from groundup.model.specs import Norm


def _rebuilt(model: AnyModel, config: Any) -> AnyModel:
    """The same tensors under another configuration."""
    mutant = build(config).to(torch.float64).eval()
    mutant.load_state_dict(model.state_dict(), strict=True)
    return mutant


def changed(**changes: Any) -> Callable[[AnyModel], AnyModel]:
    """The whole configuration with these fields."""
    return lambda model: _rebuilt(model, replace(model.config, **changes))


def part(name: str, change: Callable[[Any], StackConfig]) -> Callable[[AnyModel], AnyModel]:
    """The configuration with another tower."""
    return lambda model: _rebuilt(model, replace(model.config, **{name: change(getattr(model.config, name))}))


def layers(**changes: Any) -> Callable[[Any], StackConfig]:
    """A tower with these fields in every layer."""
    return lambda tower: replace(tower, layers=tuple(replace(layer, **changes) for layer in tower.layers))


def attention(**changes: Any) -> Callable[[Any], StackConfig]:
    def change(tower: Any) -> StackConfig:
        return replace(
            tower, layers=tuple(replace(one, mixer=replace(one.attention, **changes)) for one in tower.layers)
        )

    return change


def activation(name: str) -> Callable[[Any], StackConfig]:
    def change(tower: Any) -> StackConfig:
        networks = (replace(layer.network, activation=name) for layer in tower.layers)
        pairs = zip(tower.layers, networks, strict=True)
        return replace(tower, layers=tuple(replace(layer, feed_forward=network) for layer, network in pairs))

    return change


def looser(norm: Norm) -> Norm:
    return replace(norm, eps=norm.eps * 10)


def inner_eps(tower: Any) -> StackConfig:
    return layers(norm=looser(tower.layers[0].norm))(tower)


def edited(edit: Callable[[Any], None]) -> Callable[[AnyModel], AnyModel]:
    """The model after something was done to its modules or tensors."""

    def mutate(model: AnyModel) -> AnyModel:
        with torch.no_grad():
            edit(model)
        return model

    return mutate


def _swap_axes_of_patches(model: Any) -> None:
    config = model.config.image
    filters = model.image.patches.weight.unflatten(1, (config.channels, *config.patch_size))
    model.image.patches.weight.copy_(filters.mT.flatten(1))


def _channels_last(model: Any) -> None:
    config = model.config.image
    filters = model.image.patches.weight.unflatten(1, (config.channels, *config.patch_size))
    model.image.patches.weight.copy_(filters.permute(0, 2, 3, 1).flatten(1))


def _shift_positions(model: Any) -> None:
    model.image.positions.weight.copy_(model.image.positions.weight.roll(1, 0))


def _columns_first(model: Any) -> None:
    rows, columns = model.config.image.grid
    weight = model.image.positions.weight
    weight[1:] = weight[1:].view(rows, columns, -1).transpose(0, 1).flatten(0, 1).clone()


def _pool_last(model: Any) -> None:
    model.image.pooled = lambda pixels: model.image(pixels)[:, -1]


def _pool_mean(model: Any) -> None:
    model.image.pooled = lambda pixels: model.image(pixels).mean(1)


def _without(path: str) -> Callable[[Any], None]:
    """A norm that is left out."""

    def edit(model: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, None)

    return edit


def _not_unit(model: Any) -> None:
    compare = model.compare
    model.compare = lambda ones, others: compare(ones * 1.001, others)


def _plain_scale(model: Any) -> None:
    model.logit_scale.copy_(model.logit_scale.exp())


def _no_residual_in_pool(model: Any) -> None:
    pool = model.image.pool

    def forward(x_bnd: Tensor) -> Tensor:
        whole = type(pool).forward(pool, x_bnd)
        return whole - _seen(pool, x_bnd)

    pool.forward = forward


def _seen(pool: Any, x_bnd: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = pool.attention.register_forward_hook(lambda module, inputs, output: kept.append(output))
    type(pool).forward(pool, x_bnd)
    handle.remove()
    return kept[0][:, 0]


def _features_normed(model: Any) -> None:
    features = model.image.features
    model.image.features = lambda pixels, numbers: model.image.final_norm(features(pixels, numbers))


def _images_the_other_way_round(model: Any) -> None:
    see = model.see
    model.see = lambda pixels: see(pixels).flip(0)


def _first_instead_of_last_dropped(model: Any) -> None:
    see = model.image.features
    model.image.features = lambda pixels, numbers: see(pixels, numbers).roll(1, 1)


def _swapped(first: str, second: str) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        one, other = model.get_parameter(first), model.get_parameter(second)
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)

    return edit


def _pool_at_two(model: Any) -> None:
    model._ends = lambda ids: (ids == 2).int().argmax(dim=1)


def _other_base(text: Any) -> StackConfig:
    return attention(rope=replace(text.layers[0].attention.rope, theta=301.0))(text)


# What: (variant, the loaded model → a subtly wrong one).
MUTATIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "vit: approximate gelu": ("vit", part("image", activation("gelu_tanh"))),
    "vit: exact gelu for quick": ("vit no biases on queries", part("image", activation("gelu"))),
    "vit: eps × 10 in the layers": ("vit", part("image", inner_eps)),
    "vit: eps × 10 after them": ("vit", part("image", lambda one: replace(one, final_norm=looser(one.final_norm)))),
    "vit: scale": ("vit", part("image", attention(scale=0.3))),
    "vit: window": ("vit", part("image", attention(window=5))),
    "vit: rows and columns of a patch": ("vit", edited(_swap_axes_of_patches)),
    "vit: channels last in a patch": ("vit", edited(_channels_last)),
    "vit: class token at the end": ("vit", edited(_shift_positions)),
    "vit: patches column by column": ("vit", edited(_columns_first)),
    "vit: pooled at the last patch": ("vit", edited(_pool_last)),
    "vit: pooled over all": ("vit", edited(_pool_mean)),
    "vit: no final norm": ("vit", edited(_without("image.final_norm"))),
    "vit: keys for queries": (
        "vit",
        edited(_swapped("image.layers.1.mixer.query.weight", "image.layers.1.mixer.key.weight")),
    ),
    "clip: exact gelu in texts": ("clip", part("text", activation("gelu"))),
    "clip: exact gelu in images": ("clip", part("image", activation("gelu"))),
    "clip: quick gelu for exact": ("clip exact gelu", part("image", activation("quick_gelu"))),
    "clip: approximate gelu for exact": ("clip exact gelu", part("text", activation("gelu_tanh"))),
    "clip: texts see both sides": ("clip", part("text", attention(causal=False))),
    "clip: pooled at the last token": ("clip", changed(text_pooling="last", end_token=None)),
    "clip: pooled at the highest token": ("clip", changed(text_pooling="highest", end_token=None)),
    "clip: pooled at token 2": ("clip mistaken end", edited(_pool_at_two)),
    "clip: no norm before the layers": ("clip", edited(_without("image.embedding_norm"))),
    "clip: no norm after them": ("clip", edited(_without("image.final_norm"))),
    "clip: eps × 10 in texts": ("clip", part("text", inner_eps)),
    "clip: vectors not of length 1": ("clip", edited(_not_unit)),
    "clip: scale not its logarithm": ("clip", edited(_plain_scale)),
    "siglip: causal texts": ("siglip", part("text", attention(causal=True))),
    "siglip: exact gelu": ("siglip", part("text", activation("gelu"))),
    "siglip: approximate gelu for exact": ("siglip exact gelu", part("image", activation("gelu_tanh"))),
    "siglip: pooled at the highest token": ("siglip", changed(text_pooling="highest")),
    "siglip: pooled over all patches": ("siglip", edited(_pool_mean)),
    "siglip: pool without its residual": ("siglip", edited(_no_residual_in_pool)),
    "siglip: eps × 10 in the pool": (
        "siglip",
        part("image", lambda one: replace(one, pool=replace(one.pool, norm=looser(one.pool.norm)))),
    ),
    "siglip: keys for values in the pool": (
        "siglip",
        edited(_swapped("image.pool.attention.key.weight", "image.pool.attention.value.weight")),
    ),
    "siglip: no bias on the logits": ("siglip", edited(lambda model: model.logit_bias.zero_())),
    "llava: last layer": ("llava", changed(feature_layers=(3,))),
    "llava: last layer but two": ("llava", changed(feature_layers=(1,))),
    "llava: layers in another order": ("llava several layers", changed(feature_layers=(0, 2, 3))),
    "llava: features normed": ("llava last layer", edited(_features_normed)),
    "llava: last vector dropped, not the first": ("llava", edited(_first_instead_of_last_dropped)),
    "llava: approximate gelu between": ("llava", changed(activation="gelu_tanh")),
    "llava: exact gelu between": ("llava first vector too", changed(activation="gelu")),
    "llava: images in another order": ("llava", edited(_images_the_other_way_round)),
    "llava: quick gelu off in the tower": ("llava", part("image", activation("gelu"))),
    "llava: window off by one": ("llava mistral, siglip", part("text", attention(window=9))),
    "llava: rope base": ("llava", part("text", _other_base)),
    "llava: eps × 10 in the language model": ("llava", part("text", inner_eps)),
}
