"""Deliberate mistakes in state-space models: each turns our loaded model into a subtly wrong one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.language_model import LanguageModel
from groundup.model.mamba import MambaMixer
from groundup.model.mamba2 import Mamba2Mixer
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, Experts, LayerSpec, Norm

Mutation = Callable[[LanguageModel], LanguageModel]
Mixers = MambaMixer | Mamba2Mixer


def _configured(change: Callable[[LayerSpec], LayerSpec], **changes: Any) -> Mutation:
    """The same weights under another configuration of each layer, and of the model."""

    def mutate(model: LanguageModel) -> LanguageModel:
        config = replace(model.config, layers=tuple(map(change, model.config.layers)), **changes)
        mutated = LanguageModel(config).double().eval()
        mutated.load_state_dict(model.state_dict())
        return mutated

    return mutate


def _in_mixers(change: Callable[[Any], None]) -> Mutation:
    """A change in place of every state-space mixer."""

    @torch.no_grad()
    def mutate(model: LanguageModel) -> LanguageModel:
        mixers = [module for module in model.modules() if isinstance(module, Mixers)]
        assert mixers
        for mixer in mixers:
            change(mixer)
        return model

    return mutate


def _mixer_spec(**changes: Any) -> Mutation:
    kinds = Mamba | Mamba2
    return _configured(lambda layer: replace(layer, mixer=_replaced(layer.mixer, kinds, changes)))


def _attention_spec(**changes: Any) -> Mutation:
    return _configured(lambda layer: replace(layer, mixer=_replaced(layer.mixer, Attention, changes)))


def _replaced(mixer: Any, kinds: Any, changes: dict[str, Any]) -> Any:
    return replace(mixer, **changes) if isinstance(mixer, kinds) else mixer


def _router(**changes: Any) -> Mutation:
    def change(layer: LayerSpec) -> LayerSpec:
        experts = layer.feed_forward
        if not isinstance(experts, Experts):
            return layer
        return replace(layer, feed_forward=replace(experts, router=replace(experts.router, **changes)))

    return _configured(change)


def _exchange(first: Tensor, second: Tensor) -> None:
    kept = first.clone()
    first.copy_(second)
    second.copy_(kept)


def _exchange_selection(mixer: MambaMixer) -> None:
    _, into, out_of = mixer.selection.weight.split((mixer.spec.rank, mixer.spec.state, mixer.spec.state))
    _exchange(into, out_of)


def _exchange_groups(mixer: Mamba2Mixer) -> None:
    """The first group's input weights are the second's."""
    first, second = (slice(mixer.spec.channels + group * 6, mixer.spec.channels + (group + 1) * 6) for group in (0, 1))
    for tensor in (mixer.input.weight, mixer.convolution.weight, mixer.convolution.bias):
        assert tensor is not None
        _exchange(tensor[first], tensor[second])


def _exchange_into_and_out_of(mixer: Mamba2Mixer) -> None:
    for tensor in (mixer.input.weight, mixer.convolution.weight, mixer.convolution.bias):
        assert tensor is not None
        _exchange(*tensor[mixer.spec.channels :].chunk(2))


def _norm_first(mixer: Mamba2Mixer) -> None:
    def gated(y_btc: Tensor, gate_btc: Tensor) -> Tensor:
        normed_btc = mixer.norm(y_btc.unflatten(-1, (mixer.spec.groups, -1))).flatten(2)
        return normed_btc * mixer.norm_weight * F.silu(gate_btc)

    mixer._gated = gated


def _norm_over_all(mixer: Mamba2Mixer) -> None:
    def gated(y_btc: Tensor, gate_btc: Tensor) -> Tensor:
        return mixer.norm(y_btc * F.silu(gate_btc)) * mixer.norm_weight

    mixer._gated = gated


def _without(name: str) -> Mutation:
    return _in_mixers(lambda mixer: mixer.get_parameter(name).zero_())


def _gelu_in_the_gate(mixer: Mixers) -> None:
    forward = mixer.forward

    def with_gelu(*arguments: Any) -> Tensor:
        with mock.patch.object(F, "silu", F.gelu):
            return forward(*arguments)

    mixer.forward = with_gelu


def _eps(layer: LayerSpec) -> LayerSpec:
    return replace(layer, norm=replace(layer.norm, eps=10 * layer.norm.eps))


MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "mamba: epsilon of the norms": ("mamba", _configured(_eps)),
    "mamba: gelu after the convolution": ("mamba", _mixer_spec(activation="gelu")),
    "mamba: gelu in the gate": ("mamba", _in_mixers(_gelu_in_the_gate)),
    "mamba: taps the other way round": (
        "mamba",
        _in_mixers(lambda mixer: mixer.convolution.weight.copy_(mixer.convolution.weight.flip(-1))),
    ),
    "mamba: one tap less": ("mamba", _in_mixers(lambda mixer: mixer.convolution.weight[..., 0].zero_())),
    "mamba: no bias of the convolution": ("mamba", _without("convolution.bias")),
    "mamba: no bias of the projections": ("mamba biases", _without("input.bias")),
    "mamba: gate and input exchanged": (
        "mamba",
        _in_mixers(lambda mixer: _exchange(mixer.input.weight, mixer.gate.weight)),
    ),
    "mamba: B and C exchanged": ("mamba", _in_mixers(_exchange_selection)),
    "mamba: rates without logarithm": ("mamba", _in_mixers(lambda mixer: mixer.log_rate.copy_(mixer.log_rate.exp()))),
    "mamba: no skip": ("mamba", _without("skip")),
    "mamba: no bias of the steps": ("mamba", _without("step_bias")),
    "mamba: untied head taken for tied": (
        "mamba untied",
        lambda model: _with_head(model, model.embedding.weight),
    ),
    "mamba2: epsilon of the norms": ("mamba2", _configured(_eps)),
    "mamba2: epsilon of the gated norm": ("mamba2", _mixer_spec(norm=Norm("rms", 1e-2))),
    "mamba2: gelu in the gate": ("mamba2", _in_mixers(_gelu_in_the_gate)),
    "mamba2: norm before the gate": ("mamba2", _in_mixers(_norm_first)),
    "mamba2: norm over all groups": ("mamba2", _in_mixers(_norm_over_all)),
    "mamba2: no weight of the gated norm": ("mamba2", _in_mixers(lambda mixer: mixer.norm_weight.fill_(1.0))),
    "mamba2: groups exchanged": ("mamba2", _in_mixers(_exchange_groups)),
    "mamba2: B and C exchanged": ("mamba2", _in_mixers(_exchange_into_and_out_of)),
    "mamba2: gelu after the convolution": ("mamba2", _mixer_spec(activation="gelu")),
    "mamba2: taps the other way round": (
        "mamba2",
        _in_mixers(lambda mixer: mixer.convolution.weight.copy_(mixer.convolution.weight.flip(-1))),
    ),
    "mamba2: rates without logarithm": ("mamba2", _in_mixers(lambda mixer: mixer.log_rate.copy_(mixer.log_rate.exp()))),
    "mamba2: no skip": ("mamba2", _without("skip")),
    "mamba2: no bias of the steps": ("mamba2", _without("step_bias")),
    "mamba2: no limits of the steps": ("mamba2 limited steps", _mixer_spec(step_limits=(0.0, float("inf")))),
    "mamba2: another lower limit": ("mamba2 steps limited from below", _mixer_spec(step_limits=(0.21, float("inf")))),
    "jamba: epsilon of the inner norms": ("jamba", _mixer_spec(norm=Norm("rms", 1e-2))),
    "jamba: no norm of the steps": ("jamba", _in_mixers(lambda mixer: setattr(mixer, "step_norm", nn.Identity()))),
    "jamba: no norm of B": ("jamba", _in_mixers(lambda mixer: setattr(mixer, "into_norm", nn.Identity()))),
    "jamba: no norm of C": ("jamba", _in_mixers(lambda mixer: setattr(mixer, "out_of_norm", nn.Identity()))),
    "jamba: experts' weights normalised": ("jamba", _router(normalised=True)),
    "jamba: one expert more": ("jamba", _router(chosen=3)),
    "jamba: attention with positions": ("jamba", _attention_spec(rope=Rope())),
    "jamba: attention with another scale": ("jamba", _attention_spec(scale=7**-0.5)),
}


def _with_head(model: LanguageModel, weight: Tensor) -> LanguageModel:
    assert model.head is not None
    model.head.weight.data = weight.data
    return model
