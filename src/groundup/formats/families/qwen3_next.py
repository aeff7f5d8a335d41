"""Qwen3-Next (Qwen team 2025): three layers of the gated delta rule to one of gated attention, experts behind each.

Norms whose weight is their distance from one, a quarter of each head rotated, queries and keys normed, a gated network
beside the experts. The matrices of a layer lie joined by head; layers that only speculate are passed over.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.mixtral import (
    MATRICES,
    SHARED_NAMES,
    TRAINING_KEYS,
    expert_rules,
    experts_of,
    fused_expert_rules,
    read_sparse_layers,
    with_experts,
    write_sparse,
)
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedByGroup, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.delta_specs import GatedDeltaNet
from groundup.model.specs import Attention, Experts, FeedForward, Mixer, QueryKeyNorm, Router

BLOCK_NAMES = {ours: disk for ours, disk in llama.NAMES.items() if ".mixer." not in ours}
ATTENTION_NAMES = {ours: disk for ours, disk in llama.NAMES.items() if ".mixer." in ours and "query.weight" not in ours}
DELTA_NAMES = {
    "layers.*.mixer.convolution.weight": "model.layers.*.linear_attn.conv1d.weight",
    "layers.*.mixer.log_rate": "model.layers.*.linear_attn.A_log",
    "layers.*.mixer.step_bias": "model.layers.*.linear_attn.dt_bias",
    "layers.*.mixer.norm.weight": "model.layers.*.linear_attn.norm.weight",
    "layers.*.mixer.output.weight": "model.layers.*.linear_attn.out_proj.weight",
}
EXPERTS = "model.layers.*.mlp."


def rules(config: ModelConfig) -> Sequence[Rule]:
    """The names on disk; experts lie there one by one."""
    experts = [*same(SHARED_NAMES), *expert_rules(config, EXPERTS, MATRICES)] if _has_experts(config) else []
    return [*_dense_rules(config), *experts]


def _fused_rules(config: ModelConfig) -> Sequence[Rule]:
    return [*_dense_rules(config), *same(SHARED_NAMES), *fused_expert_rules(EXPERTS)]


def _dense_rules(config: ModelConfig) -> list[Rule]:
    mixers = [rule.of_layer(index) for index, one in enumerate(config.layers) for rule in _mixer_rules(one.mixer)]
    return [*same(BLOCK_NAMES), *mixers]


def _mixer_rules(mixer: Mixer) -> list[Rule]:
    if isinstance(mixer, Attention):
        queries = _joined(("query", "output_gate"), "self_attn.q_proj", mixer.heads)
        return with_biases([*same(ATTENTION_NAMES), queries])
    assert isinstance(mixer, GatedDeltaNet)
    inputs = _joined(("query", "key", "value", "gate"), "linear_attn.in_proj_qkvz", mixer.key_heads)
    return [*same(DELTA_NAMES), inputs, _joined(("strength", "step"), "linear_attn.in_proj_ba", mixer.key_heads)]


def _joined(ours: Sequence[str], disk: str, groups: int) -> Rule:
    names = tuple(f"layers.*.mixer.{name}.weight" for name in ours)
    return Rule(names, (f"model.layers.*.{disk}.weight",), JoinedByGroup(groups))


def _has_experts(config: ModelConfig) -> bool:
    return any(isinstance(layer.feed_forward, Experts) for layer in config.layers)


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder."""
    keys.without_effect(*TRAINING_KEYS)
    keys.fixed(use_sliding_window=False)
    config = llama.read_base(
        keys, "qwen3_next", norm="rms_plus_one", fraction=0.25, positions=32_768, head_dim=256, kv_heads=2
    )
    layer = config.layers[0]
    attention = replace(
        layer.attention,
        bias=llama.ALL if keys.flag("attention_bias", default=False) else (),
        query_key_norm=QueryKeyNorm(layer.norm),
        output_gate=True,
    )
    delta = GatedDeltaNet(
        keys.size("linear_num_key_heads", default=16),
        keys.size("linear_num_value_heads", default=32),
        keys.size("linear_key_head_dim", default=128),
        keys.size("linear_value_head_dim", default=128),
        kernel=keys.size("linear_conv_kernel_dim", default=4),
        norm_eps=layer.norm.eps,
        activation=layer.network.activation,
    )
    kinds = _read_kinds(keys, len(config.layers))
    mixers = [delta if kind == "linear_attention" else attention for kind in kinds]
    return _read_experts(keys, replace(config, layers=tuple(replace(layer, mixer=mixer) for mixer in mixers)))


def _read_kinds(keys: Keys, count: int) -> list[str]:
    """`layer_types`, or by default attention in every fourth layer."""
    interval = keys.size("full_attention_interval", default=4)
    kinds = keys.texts("layer_types") or [
        "linear_attention" if (index + 1) % interval else "full_attention" for index in range(count)
    ]
    if len(kinds) != count or set(kinds) - {"linear_attention", "full_attention"}:
        raise ValueError("`layer_types` must say linear_attention or full_attention once for each layer")
    return kinds


def _read_experts(keys: Keys, config: ModelConfig) -> ModelConfig:
    """The configuration with experts where there are to be any; in a file with none of them, nowhere."""
    dense = config.layers[0].network
    count, chosen = keys.count("num_experts", default=512), keys.size("num_experts_per_tok", default=10)
    normalised = keys.flag("norm_topk_prob", default=True)
    width = keys.size("moe_intermediate_size", default=512)
    shared = keys.size("shared_expert_intermediate_size", default=512)
    sparse = read_sparse_layers(keys, config)
    if not count or not any(sparse):
        return config
    router = Router(count, chosen, normalised=normalised)
    experts = Experts(replace(dense, width=width), router, shared=replace(dense, width=shared), shared_gate=True)
    return with_experts(config, experts, sparse)


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    mixers = [layer.mixer for layer in config.layers]
    attention = next((mixer for mixer in mixers if isinstance(mixer, Attention)), Attention(1, 1, 2))
    plain = llama.with_layers(config, mixer=attention)
    # Said in any case: what a file without it means is a quarter of each head.
    keys = {"partial_rotary_factor": 1.0} | (_write_sparse(plain) if _has_experts(config) else _write_dense(plain))
    for delta in (mixer for mixer in mixers if isinstance(mixer, GatedDeltaNet)):
        keys |= {
            "linear_conv_kernel_dim": delta.kernel,
            "linear_key_head_dim": delta.key_dim,
            "linear_num_key_heads": delta.key_heads,
            "linear_num_value_heads": delta.value_heads,
            "linear_value_head_dim": delta.value_dim,
        }
    kinds = {True: "full_attention", False: "linear_attention"}
    return keys | {
        "attention_bias": bool(attention.bias),
        "layer_types": [kinds[isinstance(mixer, Attention)] for mixer in mixers],
    }


def _write_sparse(config: ModelConfig) -> dict[str, Any]:
    shared = experts_of(config).shared
    assert isinstance(shared, FeedForward)
    return write_sparse(config) | {"shared_expert_intermediate_size": shared.width}


def _write_dense(config: ModelConfig) -> dict[str, Any]:
    return llama.write_base(config) | {
        "mlp_only_layers": list(range(len(config.layers))),
        "num_experts": 0,
        "rms_norm_eps": config.layers[0].norm.eps,
    }


QWEN3_NEXT = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    read,
    write,
    rules,
    ignored=("mtp.*",),
    other_rules=(_fused_rules,),
)
