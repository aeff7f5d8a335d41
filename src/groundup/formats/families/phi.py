"""Phi and Phi-3 (Microsoft 2023 and 2024; Phi-4 has the layers of Phi-3).

Phi: attention and feed-forward network side by side behind one layer norm, rotary positions on a part of each head,
biases everywhere, the output head included. Phi-3: LLaMA's layers with a window and LongRoPE; queries, keys and values
lie in one tensor, and so do gate and up.
"""

from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import longrope_attention_factor
from groundup.formats.rules import Joined, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import LongRopeScaling
from groundup.model.specs import QueryKeyNorm

PHI_NAMES = llama.NAMES | {
    "layers.*.mixer.output.weight": "model.layers.*.self_attn.dense.weight",
    "layers.*.mixer.query_norm.weight": "model.layers.*.self_attn.q_layernorm.weight",
    "layers.*.mixer.key_norm.weight": "model.layers.*.self_attn.k_layernorm.weight",
    "layers.*.feed_forward.up.weight": "model.layers.*.mlp.fc1.weight",
    "layers.*.feed_forward.down.weight": "model.layers.*.mlp.fc2.weight",
    "final_norm.weight": "model.final_layernorm.weight",
}
PHI3_JOINED = [
    Rule(
        tuple(f"layers.*.mixer.{name}.weight" for name in ("query", "key", "value")),
        ("model.layers.*.self_attn.qkv_proj.weight",),
        Joined(),
    ),
    Rule(
        tuple(f"layers.*.feed_forward.{name}.weight" for name in ("gate", "up")),
        ("model.layers.*.mlp.gate_up_proj.weight",),
        Joined(),
    ),
]


def _phi_rules(config: ModelConfig) -> list[Rule]:
    return [*with_biases(same(PHI_NAMES)), *same({"head_bias": "lm_head.bias"})]


def _phi3_rules(config: ModelConfig) -> list[Rule]:
    joined = {name for rule in PHI3_JOINED for name in rule.ours}
    return [*same({ours: disk for ours, disk in llama.NAMES.items() if ours not in joined}), *PHI3_JOINED]


def _read_phi(keys: Keys) -> ModelConfig:
    keys.without_effect("embd_pdrop", "resid_pdrop")
    config = llama.read_base(
        keys, "phi", norm="layer", eps=("layer_norm_eps", 1e-5), activation="gelu_new", fraction=0.5
    )
    layer = config.layers[0]
    norm = replace(layer.norm, bias=True)
    normed_heads = QueryKeyNorm(norm) if keys.flag("qk_layernorm", default=False) else None
    layer = replace(
        layer,
        mixer=replace(layer.attention, bias=llama.ALL, query_key_norm=normed_heads),
        feed_forward=replace(layer.network, gated=False, bias=True),
        norm=norm,
        placement="parallel",
    )
    return replace(config, layers=(layer,) * len(config.layers), final_norm=norm, head_bias=True)


def _write_phi(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    keys = llama.write_base(config)
    keys.setdefault("partial_rotary_factor", 1.0)  # absent, it means half of each head
    return keys | {
        "layer_norm_eps": layer.norm.eps,
        "qk_layernorm": layer.attention.query_key_norm is not None,
    }


def _read_phi3(keys: Keys) -> ModelConfig:
    keys.without_effect("embd_pdrop", "resid_pdrop")
    # Written by the models' own code, never other than this.
    keys.fixed(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1, interpolate_factor=1)
    config = llama.read_base(keys, "phi3", eps=("rms_norm_eps", 1e-5), fraction=1.0, positions=4096, original=4096)
    rope = config.layers[0].attention.rope
    if rope is None or not isinstance(rope.scaling, LongRopeScaling | None):
        raise ValueError("`rope_scaling` of a phi3 model must be of type longrope, or null")
    return llama.with_mixers(config, window=keys.optional_size("sliding_window"))


def _write_phi3(config: ModelConfig) -> dict[str, Any]:
    layer = config.layers[0]
    keys = llama.write_base(config) | {"rms_norm_eps": layer.norm.eps, "sliding_window": layer.attention.window}
    scaling = None if layer.attention.rope is None else layer.attention.rope.scaling
    if isinstance(scaling, LongRopeScaling):
        factor = config.max_positions / scaling.original
        if scaling.attention_factor == longrope_attention_factor(factor, scaling.original):
            # All that version 4 of `transformers` accepts: exactly these three.
            factors = {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
            keys["rope_scaling"] = {"type": "longrope", **factors}
    return keys


PHI = Family(
    "phi", "PhiForCausalLM", _read_phi, _write_phi, _phi_rules, ("model.layers.*.self_attn.rotary_emb.inv_freq",)
)
PHI3 = Family("phi3", "Phi3ForCausalLM", _read_phi3, _write_phi3, _phi3_rules)
