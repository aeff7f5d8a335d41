"""Jamba (Lieber et al. 2024): Mamba with norms of its own, attention without positions in every eighth layer, experts
in every second."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.mamba import expansion, mixer_rules
from groundup.formats.families.mixtral import MATRICES, expert_rules, fused_expert_rules, with_experts
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.recurrent_specs import Mamba
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec, Router

NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.*.mixer_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.*.feed_forward_norm.weight": "model.layers.*.pre_ff_layernorm.weight",
    "layers.*.feed_forward.gate.weight": "model.layers.*.feed_forward.gate_proj.weight",
    "layers.*.feed_forward.up.weight": "model.layers.*.feed_forward.up_proj.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.feed_forward.down_proj.weight",
    "final_norm.weight": "model.final_layernorm.weight",
    "head.weight": "lm_head.weight",
}
INNER_NORMS = {
    "layers.*.mixer.step_norm.weight": "model.layers.*.mamba.dt_layernorm.weight",
    "layers.*.mixer.into_norm.weight": "model.layers.*.mamba.b_layernorm.weight",
    "layers.*.mixer.out_of_norm.weight": "model.layers.*.mamba.c_layernorm.weight",
}
ATTENTION = {ours: disk for ours, disk in llama.NAMES.items() if ours.startswith("layers.*.mixer.")}
FEED_FORWARD = "model.layers.*.feed_forward."
# How it is trained, how the scan is computed, how many logits are asked for, and what repeats another key.
WITHOUT_EFFECT = (
    "calc_logits_for_entire_prompt n_ctx num_logits_to_keep router_aux_loss_coef use_associative_scan "
    "use_mamba_kernels use_mambapy"
).split()


def _base_rules(config: ModelConfig) -> list[Rule]:
    """All but the experts; what a mixer's tensors are called depends on the layer."""
    by_kind = {True: [*mixer_rules("model.layers.*.mamba."), *same(INNER_NORMS)], False: with_biases(same(ATTENTION))}
    kinds = [isinstance(layer.mixer, Mamba) for layer in config.layers]
    mixers = [rule.of_layer(index) for index, kind in enumerate(kinds) for rule in by_kind[kind]]
    return [*with_biases(same(NAMES)), *mixers]


def rules(config: ModelConfig) -> Sequence[Rule]:
    """LLaMA's and Mamba's names; experts one by one."""
    if _experts(config) is None:
        return _base_rules(config)
    return [*_base_rules(config), *expert_rules(config, FEED_FORWARD, MATRICES, router="router")]


def _fused_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*_base_rules(config), *fused_expert_rules(FEED_FORWARD, router="router")]


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder."""
    keys.without_effect(*WITHOUT_EFFECT)
    keys.fixed(mamba_inner_layernorms=True, sliding_window=None)
    config = llama.read_base(keys, "jamba", positions=262_144, kv_heads=8)
    attention, count = replace(config.layers[0].attention, rope=None), len(config.layers)
    mamba = Mamba(
        channels=config.width * keys.size("mamba_expand", default=2),
        state=keys.size("mamba_d_state", default=16),
        rank=keys.size_or_auto("mamba_dt_rank", auto=-(-config.width // 16)),
        kernel=keys.size("mamba_d_conv", default=4),
        activation=config.layers[0].network.activation,
        bias=keys.flag("mamba_proj_bias", default=False),
        convolution_bias=keys.flag("mamba_conv_bias", default=True),
        norm=config.final_norm,
    )
    attends = read_pattern(keys, "attn_layer", period=8, offset=4, count=count)
    layers = tuple(replace(config.layers[0], mixer=attention if here else mamba) for here in attends)
    experts = keys.size("num_experts", "num_local_experts", default=16)
    sparse = read_pattern(keys, "expert_layer", period=2, offset=1, count=count)
    chosen = keys.size("num_experts_per_tok", default=2)
    config = replace(config, layers=layers)
    if experts == 1 or not any(sparse):
        return config
    router = Router(experts, chosen, normalised=False)
    return with_experts(config, Experts(layers[0].network, router), sparse)


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json. Raises ValueError for layers that follow no pattern of the family."""
    mixers, network = [layer.mixer for layer in config.layers], config.layers[0].network
    attention = next((mixer for mixer in mixers if isinstance(mixer, Attention)), Attention(1, 1, config.width))
    mamba = next((mixer for mixer in mixers if isinstance(mixer, Mamba)), None)
    experts = _experts(config)
    keys = llama.write_base(replace(config, layers=_like(attention, network, config))) | {
        "rms_norm_eps": config.layers[0].norm.eps,
        "num_experts": 1 if experts is None else experts.router.experts,
        **write_pattern("attn_layer", [isinstance(mixer, Attention) for mixer in mixers]),
        **write_pattern("expert_layer", [isinstance(layer.feed_forward, Experts) for layer in config.layers]),
    }
    if experts is not None:
        keys["num_experts_per_tok"] = experts.router.chosen
    if mamba is not None:
        keys |= {
            "mamba_conv_bias": mamba.convolution_bias,
            "mamba_d_conv": mamba.kernel,
            "mamba_d_state": mamba.state,
            "mamba_dt_rank": mamba.rank,
            "mamba_expand": expansion(mamba, config.width),
            "mamba_proj_bias": mamba.bias,
        }
    return keys


def _experts(config: ModelConfig) -> Experts | None:
    return next((layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, Experts)), None)


def _like(attention: Attention, network: FeedForward, config: ModelConfig) -> tuple[LayerSpec, ...]:
    """Layers that LLaMA's keys can describe."""
    layer = replace(config.layers[0], mixer=attention, feed_forward=network)
    return (layer,) * len(config.layers)


def read_pattern(keys: Keys, name: str, period: int, offset: int, count: int) -> list[bool]:
    """Which of the layers are of this kind. period, offset: the family's defaults."""
    period = keys.size(f"{name}_period", default=period)
    offset = keys.count(f"{name}_offset", default=offset)
    if offset >= period:
        raise ValueError(f"`{name}_offset` ({offset}) must be less than `{name}_period` ({period})")
    return [index % period == offset for index in range(count)]


def write_pattern(name: str, here: Sequence[bool]) -> dict[str, int]:
    """The period and offset of the layers of a kind; those of one that comes never, or once, lie beyond the last."""
    found = [index for index, is_here in enumerate(here) if is_here]
    offset = found[0] if found else len(here)
    period = found[1] - found[0] if len(found) > 1 else max(len(here), offset + 1)
    if offset >= period or [index % period == offset for index in range(len(here))] != list(here):
        raise ValueError(f"`{name}_period` cannot say that layers {found} of {len(here)} are of this kind")
    return {f"{name}_offset": offset, f"{name}_period": period}


JAMBA = Family("jamba", "JambaForCausalLM", read, write, rules, other_rules=(_fused_rules,))
