"""Mistakes that a decoder's comparison with its reference has to notice, each made on purpose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from groundup.model import attention, latent
from groundup.model.config import LearnedPositions, ModelConfig
from groundup.model.rotary import LongRopeScaling, Rope
from groundup.model.specs import Attention, Experts, LatentAttention, LayerSpec, Norm

Tensors = dict[str, Tensor]
Change = Callable[[ModelConfig], ModelConfig]
Swap = Callable[[Tensors], None]
Patch = Callable[[pytest.MonkeyPatch], None]


def _layers(change: Callable[[LayerSpec], LayerSpec]) -> Change:
    return lambda config: replace(config, layers=tuple(map(change, config.layers)))


def _layer(**values: Any) -> Change:
    return _layers(lambda layer: replace(layer, **values))


def _mixer(**values: Any) -> Change:
    return _layers(lambda layer: replace(layer, mixer=replace(layer.mixer, **values)))


def _network(**values: Any) -> Change:
    def change(layer: LayerSpec) -> LayerSpec:
        if isinstance(layer.feed_forward, Experts):
            expert = replace(layer.feed_forward.expert, **values)
            return replace(layer, feed_forward=replace(layer.feed_forward, expert=expert))
        assert layer.feed_forward is not None
        return replace(layer, feed_forward=replace(layer.feed_forward, **values))

    return _layers(change)


def _experts(**values: Any) -> Change:
    def change(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.feed_forward, Experts):
            return layer
        return replace(layer, feed_forward=replace(layer.feed_forward, **values))

    return _layers(change)


def _router(**values: Any) -> Change:
    def change(layer: LayerSpec) -> LayerSpec:
        if not isinstance(layer.feed_forward, Experts):
            return layer
        router = replace(layer.feed_forward.router, **values)
        return replace(layer, feed_forward=replace(layer.feed_forward, router=router))

    return _layers(change)


def _model(**values: Any) -> Change:
    return lambda config: replace(config, **values)


def _norm_of_layers(**values: Any) -> Change:
    return _layers(lambda layer: replace(layer, norm=replace(layer.norm, **values)))


def _final_norm(**values: Any) -> Change:
    def change(config: ModelConfig) -> ModelConfig:
        assert config.final_norm is not None
        return replace(config, final_norm=replace(config.final_norm, **values))

    return change


def _eps(config: ModelConfig) -> ModelConfig:
    """Ten times the epsilon, in the layers alone."""
    return _layers(lambda layer: replace(layer, norm=replace(layer.norm, eps=10 * layer.norm.eps)))(config)


def _query_key_norm(**values: Any) -> Change:
    def change(layer: LayerSpec) -> LayerSpec:
        norm = layer.attention.query_key_norm
        assert norm is not None
        return replace(layer, mixer=replace(layer.attention, query_key_norm=replace(norm, **values)))

    return _layers(change)


def _rope(change: Callable[[Rope], Rope]) -> Change:
    def of_layer(layer: LayerSpec) -> LayerSpec:
        mixer = layer.mixer
        assert isinstance(mixer, Attention | LatentAttention)
        return layer if mixer.rope is None else replace(layer, mixer=replace(mixer, rope=change(mixer.rope)))

    return _layers(of_layer)


def _turn(**values: Any) -> Change:
    return _rope(lambda rope: replace(rope, **values))


def _scaling(**values: Any) -> Change:
    def change(rope: Rope) -> Rope:
        assert rope.scaling is not None
        return replace(rope, scaling=replace(rope.scaling, **values))

    return _rope(change)


def _base(config: ModelConfig) -> ModelConfig:
    return _rope(lambda rope: replace(rope, theta=1.01 * rope.theta))(config)


def _backwards(config: ModelConfig) -> ModelConfig:
    return _rope(lambda rope: replace(rope, reversed=not rope.reversed))(config)


def _pairing(config: ModelConfig) -> ModelConfig:
    return _rope(lambda rope: replace(rope, interleaved=not rope.interleaved))(config)


def _window(by: int) -> Change:
    def change(layer: LayerSpec) -> LayerSpec:
        window = layer.attention.window
        return layer if window is None else replace(layer, mixer=replace(layer.attention, window=window + by))

    return _layers(change)


def _other_layers(config: ModelConfig) -> ModelConfig:
    """Windows on the layers that have none, and the other way round."""
    window = next(layer.attention.window for layer in config.layers if layer.attention.window is not None)
    return _layers(
        lambda layer: replace(
            layer, mixer=replace(layer.attention, window=window if layer.attention.window is None else None)
        )
    )(config)


def _swap(one: str, other: str) -> Swap:
    """Tensors that change places in every layer, or wherever both are."""

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if one in name]:
            twin = name.replace(one, other)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]

    return change


def _fill(part: str, value: float) -> Swap:
    def change(tensors: Tensors) -> None:
        names = [name for name in tensors if name.endswith(part)]
        assert names
        for name in names:
            tensors[name] = torch.full_like(tensors[name], value)

    return change


def _patch(module: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Replace a function by what `make` makes of it."""
    return lambda monkeypatch: monkeypatch.setattr(module, name, make(getattr(module, name)))


def _later_group(attend: Any) -> Any:
    """Query heads dealt out to key-value heads in turn, instead of in groups."""

    def wrong(spec: Attention, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        times = spec.heads // spec.kv_heads
        return attend(spec, q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), *rest)

    return wrong


NO_NORM_OF_HEADS = _mixer(query_key_norm=None)
SWAPPED_NETWORK = _swap("feed_forward.gate", "feed_forward.up")
SWAPPED_EXPERTS = _swap("experts.gate", "experts.up")
PLAIN_SCALE = _mixer(scale=None)

# Each: the variant, what is wrong, how it is made wrong. First mistakes in the configuration.
CONFIGURATIONS: list[tuple[str, str, Change]] = [
    ("llama", "eps", _eps),
    ("llama", "final eps", _final_norm(eps=1e-2)),
    ("llama", "activation", _network(activation="gelu")),
    ("llama exact gelu", "activation", _network(activation="gelu_tanh")),
    ("llama", "rope base", _base),
    ("llama", "rope sign", _backwards),
    ("llama", "rope pairing", _pairing),
    ("llama", "scale", _mixer(scale=0.36)),
    ("llama", "tied", _model(tied_head=True)),
    ("llama", "norm kind", _norm_of_layers(kind="rms_plus_one")),
    ("llama biases", "no biases in attention", _mixer(bias=())),
    ("llama biases", "no output bias", _mixer(bias=("query", "key", "value"))),
    ("llama biases", "no biases in the network", _network(bias=False)),
    ("llama wide heads", "scale by width over heads", _mixer(scale=8**-0.5)),
    ("llama linear", "scaling", _turn(scaling=None)),
    ("llama linear", "factor", _scaling(factor=2.9)),
    ("llama dynamic", "scaling", _turn(scaling=None)),
    ("llama dynamic", "original", _scaling(original=17)),
    ("llama llama3", "scaling", _turn(scaling=None)),
    ("llama llama3", "low frequencies", _scaling(low_frequency_factor=1.1)),
    ("llama llama3", "high frequencies", _scaling(high_frequency_factor=3.9)),
    ("llama llama3", "original", _scaling(original=33)),
    ("llama yarn", "attention factor", _scaling(attention_factor=1.0)),
    ("llama yarn, all its keys", "beta fast", _scaling(beta_fast=15.0)),
    ("llama yarn, all its keys", "beta slow", _scaling(beta_slow=2.1)),
    ("llama yarn, all its keys", "truncated", _scaling(truncate=True)),
    ("mistral", "window + 1", _window(1)),
    ("mistral", "window - 1", _window(-1)),
    ("mistral", "no window", _mixer(window=None)),
    ("qwen2", "no biases", _mixer(bias=())),
    ("qwen2", "no value bias", _mixer(bias=("query", "key"))),
    ("qwen2 tied, windows", "windows elsewhere", _other_layers),
    ("qwen3", "no norm of heads", NO_NORM_OF_HEADS),
    ("qwen3", "norm after rotation", _query_key_norm(after_rope=True)),
    ("qwen3 biases, windows", "window + 1", _window(1)),
    ("smollm3", "rotation everywhere", _mixer(rope=Rope(theta=300.0))),
    ("smollm3", "eps", _eps),
    ("nanochat", "no softcap", _model(logit_softcap=None)),
    ("nanochat", "no norm of the embedding", _model(embedding_norm=None)),
    ("nanochat", "rope sign", _backwards),
    ("nanochat", "activation", _network(activation="relu")),
    ("nanochat", "eps of heads", _query_key_norm(norm=Norm("rms_without_weight", 1e-1))),
    ("gemma", "norm kind", _norm_of_layers(kind="rms")),
    ("gemma", "final norm kind", _final_norm(kind="rms")),
    ("gemma", "no scale of the embedding", _model(embedding_scale=None)),
    ("gemma", "activation", _network(activation="gelu")),
    ("gemma", "eps", _eps),
    ("gemma2", "no softcap of scores", _mixer(softcap=None)),
    ("gemma2", "no softcap of logits", _model(logit_softcap=None)),
    ("gemma2", "scale", PLAIN_SCALE),
    ("gemma2", "window + 1", _window(1)),
    ("gemma2", "windows elsewhere", _other_layers),
    ("gemma3_text", "one base for all", _rope(lambda rope: replace(rope, theta=300.0))),
    ("gemma3_text", "no norm of heads", NO_NORM_OF_HEADS),
    ("gemma3_text", "scale", PLAIN_SCALE),
    ("gemma3_text", "window - 1", _window(-1)),
    ("olmo2", "eps", _eps),
    ("olmo3", "windows elsewhere", _other_layers),
    ("olmo3", "no norm of queries and keys", NO_NORM_OF_HEADS),
    ("gpt2", "activation", _network(activation="gelu")),
    ("gpt2 exact gelu", "activation", _network(activation="gelu_tanh")),
    ("gpt2", "eps", _eps),
    ("gpt2", "scale", _mixer(scale=0.36)),
    ("gpt2", "norm kind", _norm_of_layers(kind="rms", bias=False)),
    ("gpt2 scaled by layer", "scale", PLAIN_SCALE),
    ("gpt_neox", "in sequence", _layer(placement="pre")),
    ("gpt_neox", "one norm", _layer(placement="parallel")),
    ("gpt_neox", "part that is rotated", _turn(dims=2)),
    ("gpt_neox", "activation", _network(activation="gelu_tanh")),
    ("gpt_neox in sequence", "side by side", _layer(placement="parallel_two_norms")),
    ("gptj", "rope pairing", _pairing),
    ("gptj", "no bias of the head", _model(head_bias=False)),
    ("gptj", "activation", _network(activation="gelu")),
    ("opt", "activation", _network(activation="gelu")),
    ("opt", "offset", lambda config: replace(config, learned_positions=LearnedPositions(41, 1))),
    ("falcon", "activation", _network(activation="gelu_tanh")),
    ("falcon", "rope base", _base),
    ("falcon grouped", "one norm", _layer(placement="parallel")),
    ("falcon alibi", "factor", _mixer(alibi=1.0)),
    ("falcon alibi", "none", _mixer(alibi=None)),
    ("phi", "part that is rotated", _turn(dims=2)),
    ("phi", "no bias of the head", _model(head_bias=False)),
    ("phi norm of heads", "no norm of heads", NO_NORM_OF_HEADS),
    ("phi3 window", "window + 1", _window(1)),
    ("phi3 longrope", "attention factor", _scaling(attention_factor=1.0)),
    (
        "phi3 longrope",
        "long factors",
        _rope(
            lambda rope: (
                replace(rope, scaling=replace(rope.scaling, short=rope.scaling.long))
                if isinstance(rope.scaling, LongRopeScaling)
                else rope
            )
        ),
    ),
    ("cohere", "rope pairing", _pairing),
    ("cohere", "no scale of the logits", _model(logit_scale=None)),
    ("cohere", "norm kind", _norm_of_layers(kind="rms")),
    ("cohere", "eps", _eps),
    ("cohere norm of heads", "no norm of heads", NO_NORM_OF_HEADS),
    ("cohere2", "rotation everywhere", _mixer(rope=Rope(theta=300.0, interleaved=True))),
    ("cohere2", "window + 1", _window(1)),
    ("mixtral", "not renormalised", _router(normalised=False)),
    ("mixtral", "one expert less", _router(chosen=1)),
    ("qwen2_moe", "renormalised", _router(normalised=True)),
    ("qwen2_moe", "no gate of the shared network", _experts(shared_gate=False)),
    ("qwen2_moe", "no shared network", _experts(shared=None, shared_gate=False)),
    ("qwen3_moe", "renormalised", _router(normalised=True)),
    ("qwen3_moe", "no norm of heads", NO_NORM_OF_HEADS),
    ("olmoe", "renormalised", _router(normalised=True)),
    ("olmoe clipped", "not clipped", _mixer(clip=None)),
    ("gpt_oss", "no limit", _network(limit=None)),
    ("gpt_oss", "sharpness", _network(sharpness=1.0)),
    ("gpt_oss", "no offset", _network(up_offset=0.0)),
    ("gpt_oss", "window + 1", _window(1)),
    ("deepseek_v3", "score", _router(score="softmax")),
    ("deepseek_v3", "scale of the weights", _router(scale=1.0)),
    ("deepseek_v3", "no groups", _router(groups=1, chosen_groups=1)),
    ("deepseek_v3", "best of a group", _router(group_best=1)),
    ("deepseek_v3", "rope pairing", _pairing),
    ("deepseek_v3", "no shared network", _experts(shared=None)),
    ("deepseek_v3", "eps inside", _mixer(norm=Norm("rms", 1e-1))),
    ("deepseek_v3 one group, not normalised", "renormalised", _router(normalised=True)),
    ("deepseek_v3 yarn", "growth of the scores", _mixer(yarn_mscale=0.0)),
    ("deepseek_v3 yarn", "attention factor", _scaling(attention_factor=1.3)),
]
# Tensors that land in the wrong place, or nowhere.
TENSORS: list[tuple[str, str, Swap]] = [
    ("olmo2", "norms of a layer", _swap("mixer_output_norm", "feed_forward_output_norm")),
    ("opt norms after", "norms of a layer", _swap("mixer_sum_norm", "feed_forward_sum_norm")),
    ("llama", "gate and up", SWAPPED_NETWORK),
    ("llama", "norms of a layer", _swap("mixer_norm", "feed_forward_norm")),
    ("qwen3", "norms of queries and keys", _swap("query_norm", "key_norm")),
    ("gemma2", "norms of a layer", _swap("mixer_output_norm", "feed_forward_norm")),
    ("gemma2", "norm after the network", _swap("feed_forward_output_norm", "feed_forward_norm")),
    ("gpt2", "queries and keys", _swap("mixer.query", "mixer.key")),
    ("phi3", "gate and up", SWAPPED_NETWORK),
    ("mixtral", "gate and up", SWAPPED_EXPERTS),
    ("gpt_oss", "no sinks", _fill("sinks", float("-inf"))),
    ("gpt_oss", "gate and up", SWAPPED_EXPERTS),
    ("gpt_oss", "no router bias", _fill("router.bias", 0.0)),
    ("deepseek_v3", "no correction", _fill("correction", 0.0)),
]
# Mistakes in the code.
CODE: list[tuple[str, str, Patch]] = [
    ("llama", "heads in turn", _patch(attention, "attend", _later_group)),
    ("falcon grouped", "heads in turn", _patch(attention, "attend", _later_group)),
    ("falcon alibi, six heads", "slopes", _patch(attention, "alibi_slopes", lambda f: lambda heads: f(8)[:heads])),
    (
        "deepseek_v3",
        "scale of the scores",
        _patch(latent, "attend", lambda f: lambda s, *a: f(replace(s, scale=0.2), *a)),
    ),
]
