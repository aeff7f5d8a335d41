"""Deliberate mistakes in encoders: each must make the comparison with the reference fail."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from groundup.model.build import AnyConfig, AnyModel, build
from groundup.model.classifier import SequenceClassifier
from groundup.model.config import ClassifierConfig, LearnedPositions, ModelConfig
from groundup.model.language_model import LanguageModel
from groundup.model.parts import Normalise
from groundup.model.rotary import Rope
from groundup.model.specs import LayerSpec, Norm
from groundup.model.stack import Block

Mutation = Callable[[AnyModel], nn.Module]


def with_layers(config: ModelConfig, **changes: Any) -> ModelConfig:
    return replace(config, layers=tuple(replace(layer, **changes) for layer in config.layers))


def with_mixers(config: ModelConfig, **changes: Any) -> ModelConfig:
    mixers = (replace(layer.attention, **changes) for layer in config.layers)
    return replace(
        config, layers=tuple(replace(one, mixer=mixer) for one, mixer in zip(config.layers, mixers, strict=True))
    )


def _config(change: Callable[[Any], AnyConfig]) -> Mutation:
    """The same tensors, as far as it has them, in a model of another configuration."""

    def mutate(model: AnyModel) -> AnyModel:
        other = build(change(model.config)).double()
        held = dict(model.state_dict())
        other.load_state_dict({name: held[name] for name in other.state_dict()}, strict=True)
        return other.eval()

    return mutate


def _encoder(change: Callable[[ModelConfig], ModelConfig]) -> Mutation:
    """The same for the encoder, be it a classifier's or a language model itself."""

    def changed(config: ModelConfig | ClassifierConfig) -> AnyConfig:
        if isinstance(config, ClassifierConfig):
            return replace(config, encoder=change(config.encoder))
        return change(config)

    return _config(changed)


def _in_place(change: Callable[[LanguageModel], object]) -> Mutation:
    """A change to the module of the encoder."""

    @torch.no_grad()
    def mutate(model: AnyModel) -> AnyModel:
        encoder = model.encoder if isinstance(model, SequenceClassifier) else model
        assert isinstance(encoder, LanguageModel)
        change(encoder)
        return model

    return mutate


def _feed_forward(**changes: Any) -> Mutation:
    def change(config: ModelConfig) -> ModelConfig:
        return with_layers(config, feed_forward=replace(config.layers[0].network, **changes))

    return _encoder(change)


def _norms(change: Callable[[Norm], Norm]) -> Mutation:
    """All norms of the encoder, the head's included."""

    def changed(config: ModelConfig) -> ModelConfig:
        norm = change(config.layers[0].norm)
        head = config.head_transform
        return replace(
            with_layers(config, norm=norm),
            embedding_norm=norm,
            final_norm=config.final_norm and norm,
            head_transform=None if head is None else replace(head, norm=norm),
        )

    return _encoder(changed)


def _head(**changes: Any) -> Mutation:
    def change(config: ModelConfig) -> ModelConfig:
        assert config.head_transform is not None
        return replace(config, head_transform=replace(config.head_transform, **changes))

    return _encoder(change)


def _pooler(**changes: Any) -> Mutation:
    return _config(lambda config: replace(config, transform=replace(config.transform, **changes)))


def _each_layer(change: Callable[[LayerSpec], LayerSpec]) -> Mutation:
    return _encoder(lambda config: replace(config, layers=tuple(map(change, config.layers))))


def _window(change: int) -> Mutation:
    def changed(layer: LayerSpec) -> LayerSpec:
        window = layer.attention.window
        return layer if window is None else replace(layer, mixer=replace(layer.attention, window=window + change))

    return _each_layer(changed)


def _rope(change: Callable[[Rope], Rope]) -> Mutation:
    def changed(layer: LayerSpec) -> LayerSpec:
        assert layer.attention.rope is not None
        return replace(layer, mixer=replace(layer.attention, rope=change(layer.attention.rope)))

    return _each_layer(changed)


def _blocks(model: LanguageModel) -> list[Block]:
    return [block for block in model.layers if isinstance(block, Block)]


def _norms_before(model: LanguageModel) -> None:
    for block in _blocks(model):
        block.mixer_norm, block.mixer_sum_norm = block.mixer_sum_norm, nn.Identity()
        block.feed_forward_norm, block.feed_forward_sum_norm = block.feed_forward_sum_norm, nn.Identity()


def _first_norm(model: LanguageModel) -> None:
    block = _blocks(model)[0]
    block.mixer_norm = Normalise(block.spec.norm, model.width).double()


def _halves_swapped(model: LanguageModel) -> None:
    for block in _blocks(model):
        network = block.feed_forward
        network.gate, network.up = network.up, network.gate


def _thetas_swapped(config: ModelConfig) -> ModelConfig:
    ropes = {layer.attention.window: layer.attention.rope for layer in config.layers}
    first, second = ropes
    other = {first: ropes[second], second: ropes[first]}
    return replace(
        config,
        layers=tuple(
            replace(one, mixer=replace(one.attention, rope=other[one.attention.window])) for one in config.layers
        ),
    )


def _pattern_shifted(config: ModelConfig) -> ModelConfig:
    mixers = [layer.attention for layer in config.layers]
    layers = zip(config.layers, [*mixers[-1:], *mixers[:-1]], strict=True)
    return replace(config, layers=tuple(replace(layer, mixer=mixer) for layer, mixer in layers))


def _positions_from(shift: int) -> Mutation:
    def change(config: ModelConfig) -> ModelConfig:
        table = config.learned_positions
        assert table is not None
        other = LearnedPositions(table.rows - shift, table.offset + shift)
        return replace(config, learned_positions=other, max_positions=30)

    return _encoder(change)


class _PaddingSeen(nn.Module):
    """Padding takes part in everything, as if there were no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **rest: Tensor) -> Tensor:
        return self.model(input_ids, **rest)


class _PaddingPooled(SequenceClassifier):
    """Padding takes part in the mean."""

    def _pool(self, out_btd: Tensor, attention_mask: Tensor | None) -> Tensor:
        return out_btd.mean(dim=1)


class _LastTokenPooled(SequenceClassifier):
    def _pool(self, out_btd: Tensor, attention_mask: Tensor | None) -> Tensor:
        assert attention_mask is not None
        return out_btd[torch.arange(len(out_btd)), attention_mask.sum(1) - 1]


def _as(kind: type[SequenceClassifier]) -> Mutation:
    def mutate(model: AnyModel) -> nn.Module:
        model.__class__ = kind
        return model

    return mutate


def _without(name: str) -> Mutation:
    return _in_place(lambda model: setattr(model, name, None))


def _flip(name: str) -> Mutation:
    """The rows of a table in the other order."""
    return _in_place(lambda model: getattr(model, name).weight.copy_(getattr(model, name).weight.flip(0)))


# Mistake: (variant it is made in, our loaded model → the wrong one).
MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "bert: approximate gelu in the layers": ("bert", _feed_forward(activation="gelu_tanh")),
    "bert: exact gelu where the approximation is meant": ("bert approximate gelu", _feed_forward(activation="gelu")),
    "bert: approximate gelu before the head": ("bert", _head(activation="gelu_tanh")),
    "bert: epsilon times ten": ("bert", _norms(lambda norm: replace(norm, eps=10 * norm.eps))),
    "bert: epsilon times ten before the head": ("bert", _head(norm=Norm("layer", 1e-2, bias=True))),
    "bert: norms before the sublayers": ("bert", _in_place(_norms_before)),
    "bert: embedding not normed": ("bert", _without("embedding_norm")),
    "bert: scores not scaled": ("bert", _encoder(lambda config: with_mixers(config, scale=1.0))),
    "bert: sees only what came before": ("bert", _encoder(lambda config: with_mixers(config, causal=True))),
    "bert: sees only neighbours": ("bert", _encoder(lambda config: with_mixers(config, window=8))),
    "bert: kinds of tokens mixed up": ("bert", _flip("token_types")),
    "bert: positions from one row on": ("bert", _positions_from(1)),
    "bert: head without its bias": ("bert", _without("head_bias")),
    "bert: head without its transform": ("bert", _without("transform")),
    "bert: head tied though it has its own": (
        "bert head of its own",
        _encoder(lambda config: replace(config, tied_head=True)),
    ),
    "bert: padding seen": ("bert", _PaddingSeen),
    "bert classifier: pooler without tanh": ("bert classifier", _pooler(activation="gelu")),
    "bert classifier: mean of the tokens": ("bert classifier", _config(lambda config: replace(config, pooling="mean"))),
    "bert classifier: last token": ("bert classifier", _as(_LastTokenPooled)),
    "bert classifier: kinds of tokens mixed up": ("bert classifier", _flip("token_types")),
    "roberta: positions from the padding's row on": ("roberta", _positions_from(-1)),
    "roberta: positions from the first row on": ("roberta", _positions_from(-4)),
    "roberta: the layers' activation before the head": ("roberta relu", _head(activation="relu")),
    "roberta: approximate gelu before the head": ("roberta", _head(activation="gelu_tanh")),
    "roberta: head tied though it has its own": (
        "roberta head of its own",
        _encoder(lambda config: replace(config, tied_head=True)),
    ),
    "roberta classifier: no tanh": ("roberta classifier", _pooler(activation="relu")),
    "roberta classifier: mean of the tokens": (
        "roberta classifier",
        _config(lambda config: replace(config, pooling="mean")),
    ),
    "distilbert: GPT's epsilon": ("distilbert", _norms(lambda norm: replace(norm, eps=1e-5))),
    "distilbert: gelu before the head": ("distilbert relu", _head(activation="gelu")),
    "distilbert: gelu in the layers": ("distilbert relu", _feed_forward(activation="gelu")),
    "distilbert: sees only what came before": ("distilbert", _encoder(lambda config: with_mixers(config, causal=True))),
    "distilbert classifier: tanh for relu": ("distilbert classifier", _pooler(activation="tanh")),
    "distilbert classifier: last token": ("distilbert classifier", _as(_LastTokenPooled)),
    "modernbert: activation on the second half": ("modernbert", _in_place(_halves_swapped)),
    "modernbert: approximate gelu": ("modernbert", _feed_forward(activation="gelu_tanh")),
    "modernbert: window one wider": ("modernbert", _window(1)),
    "modernbert: window one narrower": ("modernbert", _window(-1)),
    "modernbert: odd window rounded up": ("modernbert every second layer, odd window", _window(1)),
    "modernbert: no windows": (
        "modernbert",
        _each_layer(lambda layer: replace(layer, mixer=replace(layer.attention, window=None))),
    ),
    "modernbert: windows that look back alone": (
        "modernbert",
        _each_layer(lambda one: replace(one, mixer=replace(one.attention, causal=one.attention.window is not None))),
    ),
    "modernbert: pattern of windows shifted": ("modernbert", _encoder(_pattern_shifted)),
    "modernbert: bases of the two kinds of layers swapped": ("modernbert", _encoder(_thetas_swapped)),
    "modernbert: rotary base": ("modernbert", _rope(lambda rope: replace(rope, theta=rope.theta + 1))),
    "modernbert: rotary pairing": ("modernbert", _rope(lambda rope: replace(rope, interleaved=True))),
    "modernbert: rotary sign": ("modernbert", _rope(lambda rope: replace(rope, reversed=True))),
    "modernbert: positions not stretched": ("modernbert stretched", _rope(lambda rope: replace(rope, scaling=None))),
    "modernbert: first attention normed": ("modernbert", _in_place(_first_norm)),
    "modernbert: embedding not normed": ("modernbert", _without("embedding_norm")),
    "modernbert: no final norm": ("modernbert", _without("final_norm")),
    "modernbert: epsilon times ten": ("modernbert", _norms(lambda norm: replace(norm, eps=10 * norm.eps))),
    "modernbert: gelu before the head": ("modernbert biases", _head(activation="gelu")),
    "modernbert: head without its bias": ("modernbert", _without("head_bias")),
    "modernbert: head tied though it has its own": (
        "modernbert head of its own",
        _encoder(lambda config: replace(config, tied_head=True)),
    ),
    "modernbert classifier: mean for first": (
        "modernbert classifier",
        _config(lambda config: replace(config, pooling="mean")),
    ),
    "modernbert classifier: first for mean": (
        "modernbert classifier, mean",
        _config(lambda config: replace(config, pooling="first")),
    ),
    "modernbert classifier: padding in the mean": ("modernbert classifier, mean", _as(_PaddingPooled)),
    "modernbert classifier: pooled without a norm": ("modernbert classifier", _pooler(norm=None)),
    "modernbert classifier: tanh before the head": ("modernbert classifier", _pooler(activation="tanh")),
}
