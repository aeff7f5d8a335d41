"""Qwen3-Next (Qwen team 2025): three layers of the gated delta rule to one of gated attention, experts behind each.

Norms whose weight is their distance from one, a quarter of each head rotated, queries and keys normed, a gated network
beside the experts. The matrices of a layer lie joined by head; layers that only speculate are passed over.
"""

from collections.abc import Sequence
from dataclasses import replace

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, Several, fixed
from groundup.formats.families import llama
from groundup.formats.families.mixtral import (
    MATRICES,
    SHARED_NAMES,
    TRAINING_KEYS,
    expert_rules,
    fused_expert_rules,
    read_sparse_layers,
    write_sparse_layers,
)
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedByGroup, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.delta_specs import GatedDeltaNet
from groundup.model.specs import Attention, Mixer

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
    return [*_dense_rules(config), *same(SHARED_NAMES), *expert_rules(config, EXPERTS, MATRICES)]


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


def _read_usual_kinds(keys: Keys, facts: Facts) -> list[bool]:
    """By default every fourth layer attends."""
    interval = keys.size("full_attention_interval", default=4)
    return [bool((index + 1) % interval) for index in range(facts["layers"])]


def _read_sparse_layers(keys: Keys, facts: Facts) -> None:
    """In a file without experts no layer has any."""
    read_sparse_layers(keys, facts)
    if not facts["router.experts"]:
        facts["layer.sparse"] = False


KEYS = (
    llama.QWEN_KEYS
    | TRAINING_KEYS
    | llama.ATTENTION_BIAS
    | {
        "use_sliding_window": fixed(False),
        "head_dim": fields.HEAD_DIM.usually(256),
        "num_key_value_heads": fields.KV_HEADS.usually(2),
        "rope_theta": fields.Rotary(fraction=0.25),
        "linear_num_key_heads": Field("delta.key_heads", Keys.size, default=16),
        "linear_num_value_heads": Field("delta.value_heads", Keys.size, default=32),
        "linear_key_head_dim": Field("delta.key_dim", Keys.size, default=128),
        "linear_value_head_dim": Field("delta.value_dim", Keys.size, default=128),
        "linear_conv_kernel_dim": Field("delta.kernel", Keys.size, default=4),
        "layer_types": fields.OtherMixers("linear_attention", "delta", _read_usual_kinds),
        "num_experts": replace(fields.EXPERTS, reader=Keys.count).usually(512),
        "num_experts_per_tok": fields.CHOSEN.usually(10),
        "norm_topk_prob": fields.NORMALISED.usually(True),
        "moe_intermediate_size": fields.EXPERT_WIDTH.usually(512),
        "shared_expert_intermediate_size": fields.SHARED_WIDTH.usually(512),
        "decoder_sparse_step": Several(_read_sparse_layers, write_sparse_layers),
    }
)
ALWAYS = llama.NORMED_HEADS | {
    "norm.kind": "rms_plus_one",
    "mixer.output_gate": True,
    "delta.norm_eps": lambda facts: facts["norm.eps"],
    "delta.activation": lambda facts: facts["feed_forward.activation"],
    "experts.shared_gate": True,
}
QWEN3_NEXT = mapped(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    KEYS,
    rules,
    always=ALWAYS,
    ignored=("mtp.*",),
    other_rules=(_fused_rules,),
)
