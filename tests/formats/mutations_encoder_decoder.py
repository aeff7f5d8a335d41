"""Deliberate mistakes in encoder-decoders, each of which the comparison with the reference must notice.

A mistake is made in a configuration, where the trait is one; where it is code, in the module that is run.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from variants_encoder_decoder import OWN_HEAD

from groundup.model import audio, language_model
from groundup.model.config import EncoderDecoderConfig, StackConfig
from groundup.model.context import Memory
from groundup.model.encoder_decoder import EncoderDecoder
from groundup.model.positions import RelativeBias
from groundup.model.specs import Experts, LayerSpec, Norm

Mutation = Callable[[EncoderDecoder, pytest.MonkeyPatch], EncoderDecoder]


def _rebuilt(change: Callable[[EncoderDecoderConfig], EncoderDecoderConfig]) -> Mutation:
    """The same tensors, as far as they have a place, in a model of another configuration."""

    def mutate(model: EncoderDecoder, patch: pytest.MonkeyPatch) -> EncoderDecoder:
        other = EncoderDecoder(change(model.config)).double().eval()
        missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
        assert not missing, f"a mistake may leave tensors out, not ask for others: {missing}"
        return other

    return mutate


def _stacks(change: Callable[[Any], StackConfig]) -> Mutation:
    """Both stacks changed."""
    return _rebuilt(lambda config: replace(config, encoder=change(config.encoder), decoder=change(config.decoder)))


def _layers(change: Callable[[LayerSpec], LayerSpec]) -> Mutation:
    """Every layer changed."""
    return _stacks(lambda stack: replace(stack, layers=tuple(map(change, stack.layers))))


def _network(**changes: Any) -> Mutation:
    """Every feed-forward network changed, also those that are experts."""

    def change(layer: LayerSpec) -> LayerSpec:
        network = replace(layer.network, **changes)
        fed = layer.feed_forward
        return replace(layer, feed_forward=replace(fed, expert=network) if isinstance(fed, Experts) else network)

    return _layers(change)


def _router(**changes: Any) -> Mutation:
    def change(layer: LayerSpec) -> LayerSpec:
        fed = layer.feed_forward
        if not isinstance(fed, Experts):
            return layer
        return replace(layer, feed_forward=replace(fed, router=replace(fed.router, **changes)))

    return _layers(change)


def _tenfold(norm: Norm | None) -> Norm | None:
    return None if norm is None else replace(norm, eps=10 * norm.eps)


def _cross(**changes: Any) -> Mutation:
    return _layers(lambda one: one if one.cross is None else replace(one, cross=replace(one.cross, **changes)))


def _decoder(**changes: Any) -> Mutation:
    return _rebuilt(lambda config: replace(config, decoder=replace(config.decoder, **changes)))


def _max_distance(stack: Any) -> StackConfig:
    return replace(stack, relative_positions=replace(stack.relative_positions, max_distance=24))


def _patched(owner: Any, name: str, changed: Callable[[Any], Any]) -> Mutation:
    """changed: what stands in the place of `owner.name`, made of what stood there."""

    def mutate(model: EncoderDecoder, patch: pytest.MonkeyPatch) -> EncoderDecoder:
        patch.setattr(owner, name, changed(getattr(owner, name)))
        return model

    return mutate


def _in_place(change: Callable[[EncoderDecoder], None]) -> Mutation:
    def mutate(model: EncoderDecoder, patch: pytest.MonkeyPatch) -> EncoderDecoder:
        with torch.no_grad():
            change(model)
        return model

    return mutate


def _swap_tables(model: EncoderDecoder) -> None:
    one, other = model.encoder.relative, model.decoder.relative
    assert one is not None and other is not None
    one.table, other.table = other.table, one.table


def _look_ahead(model: EncoderDecoder) -> None:
    for layer in model.decoder.layers:
        layer.mixer.spec = replace(layer.mixer.spec, causal=False)


def _without_norm(run: Any) -> Any:
    """The encoder's output taken before its last norm."""

    def unnormed(self: EncoderDecoder, *args: Any, **kwargs: Any) -> Memory:
        self.encoder.final_norm = None
        return run(self, *args, **kwargs)

    return unnormed


class _ApproximateGelu:
    """torch.nn.functional as the convolutions see it, with the approximation for the exact GELU."""

    conv1d = staticmethod(F.conv1d)
    gelu = staticmethod(lambda x: F.gelu(x, approximate="tanh"))


def _later(token_positions: Any) -> Any:
    return lambda *args: token_positions(*args) + 1


def _computed_positions(model: EncoderDecoder) -> None:
    """Sinusoids computed anew in place of those of the file."""
    weight = model.encoder.positions.weight
    weight.copy_(audio.sinusoids(*weight.shape))


def _stride_first(model: EncoderDecoder) -> None:
    model.encoder.first.stride, model.encoder.second.stride = 2, 1


V1_1 = f"t5 unscaled, gated, {OWN_HEAD}"
SWITCH = "switch_transformers little room"
# Mistake: (variant, what makes it).
MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "t5 eps of the layers × 10": ("t5", _layers(lambda one: replace(one, norm=replace(one.norm, eps=1e-2)))),
    "t5 eps of the last norms × 10": ("t5", _stacks(lambda one: replace(one, final_norm=_tenfold(one.final_norm)))),
    "t5 no last norm": ("t5", _decoder(final_norm=None)),
    "t5 no last norm in the encoder": ("t5", _patched(EncoderDecoder, "encode", _without_norm)),
    "t5 norm of another kind": (
        "t5",
        _layers(lambda one: replace(one, norm=Norm("layer", one.norm.eps))),
    ),
    "t5 scaled scores": ("t5", _layers(lambda one: replace(one, mixer=replace(one.attention, scale=None)))),
    "t5 scaled scores of cross-attention": ("t5", _cross(scale=None)),
    "t5 relu² for relu": ("t5", _network(activation="relu_squared")),
    "t5 exact GELU for the approximation": ("t5 gated", _network(activation="gelu")),
    "t5 approximate GELU for the exact one": ("t5 exact gelu", _network(activation="gelu_tanh")),
    "t5 unscaled head": ("t5", _decoder(logit_scale=None)),
    "t5 scaled head": (V1_1, _decoder(logit_scale=32**-0.5)),
    "t5 tied head": (V1_1, _decoder(tied_head=True)),
    "t5 largest distance": ("t5", _stacks(_max_distance)),
    "t5 no relative positions": ("t5", _stacks(lambda one: replace(one, relative_positions=None))),
    "t5 tables of the other stack": ("t5", _in_place(_swap_tables)),
    "t5 distances the other way round": (
        "t5",
        _patched(RelativeBias, "buckets", lambda buckets: lambda self, distances: buckets(self, -distances)),
    ),
    "t5 one distance farther": (
        "t5",
        _patched(RelativeBias, "buckets", lambda buckets: lambda self, distances: buckets(self, distances - 1)),
    ),
    "t5 decoder looks ahead": ("t5", _in_place(_look_ahead)),
    "switch room for one more": (SWITCH, _router(capacity=4)),
    "switch room for one less": (SWITCH, _router(capacity=2)),
    "switch room for all": (SWITCH, _router(capacity=None)),
    "switch weights that are all one": (SWITCH, _router(normalised=True)),
    "switch two experts": (SWITCH, _router(capacity=None, chosen=2)),
    "switch sigmoid": (SWITCH, _router(score="sigmoid")),
    "switch no bias of the router": (
        "switch_transformers all layers sparse, router bias",
        _router(bias=False),
    ),
    "switch relu for silu": ("switch_transformers silu", _network(activation="relu")),
    "whisper eps × 10": ("whisper", _layers(lambda one: replace(one, norm=replace(one.norm, eps=1e-4)))),
    "whisper norm without mean": ("whisper", _layers(lambda one: replace(one, norm=Norm("rms", one.norm.eps)))),
    "whisper approximate GELU": ("whisper", _network(activation="gelu_tanh")),
    "whisper approximate GELU of the convolutions": ("whisper", _patched(audio, "F", lambda _: _ApproximateGelu)),
    "whisper first convolution halves the time": ("whisper", _in_place(_stride_first)),
    "whisper scores unscaled": ("whisper", _layers(lambda one: replace(one, mixer=replace(one.attention, scale=1.0)))),
    "whisper computed sinusoids": ("whisper", _in_place(_computed_positions)),
    "whisper positions of the target one later": ("whisper", _patched(language_model, "token_positions", _later)),
    "whisper no positions of the target": ("whisper", _decoder(learned_positions=None)),
    "whisper no value bias": (
        "whisper",
        _layers(lambda one: replace(one, mixer=replace(one.attention, bias=("query", "output")))),
    ),
    "whisper tied head": ("whisper head of its own", _decoder(tied_head=True)),
    "whisper decoder looks ahead": ("whisper", _in_place(_look_ahead)),
}
