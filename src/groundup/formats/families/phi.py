"""Phi and Phi-3 (Microsoft 2023 and 2024; Phi-4 has the layers of Phi-3).

Phi: attention and feed-forward network side by side behind one layer norm, rotary positions on a part of each head,
biases everywhere, the output head included. Phi-3: LLaMA's layers with a window and LongRoPE; queries, keys and values
lie in one tensor, and so do gate and up.
"""

from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Facts, Several, fixed, without_effect
from groundup.formats.families import llama
from groundup.formats.families.gpt import PLAIN
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rope_keys import longrope_attention_factor
from groundup.formats.rules import Joined, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import LongRopeScaling

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


PHI_KEYS = (
    llama.SHAPE
    | without_effect("embd_pdrop resid_pdrop")
    | {
        "rope_theta": fields.Rotary(fraction=0.5),
        "hidden_act": fields.ACTIVATION.usually("gelu_new"),
        "layer_norm_eps": fields.EPS.usually(1e-5),
        "qk_layernorm": fields.query_key_norm().usually(False),
    }
)


def _read_scaling(keys: Keys, facts: Facts) -> None:
    if not isinstance(facts["mixer.rope"].scaling, LongRopeScaling | None):
        raise ValueError("`rope_scaling` of a phi3 model must be of type longrope, or null")


def _write_scaling(config: ModelConfig) -> dict[str, Any]:
    rope = config.layers[0].attention.rope
    if rope is not None and isinstance(rope.scaling, LongRopeScaling):
        original = rope.scaling.original
        if rope.scaling.attention_factor == longrope_attention_factor(config.max_positions / original, original):
            # All that version 4 of `transformers` accepts: exactly these three.
            factors = {"short_factor": list(rope.scaling.short), "long_factor": list(rope.scaling.long)}
            return {"rope_scaling": {"type": "longrope", **factors}}
    return {}


PHI3_KEYS = (
    llama.KEYS
    | without_effect("embd_pdrop resid_pdrop")
    # Written by the models' own code, never other than this.
    | dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), fixed(False))
    | dict.fromkeys(("full_attn_mod", "interpolate_factor"), fixed(1))
    | {
        "rms_norm_eps": fields.EPS.usually(1e-5),
        "max_position_embeddings": fields.POSITIONS.usually(4096),
        "rope_theta": fields.Rotary(fraction=1.0, original=4096),
        "rope_scaling": Several(_read_scaling, _write_scaling),
        "sliding_window": fields.WINDOW.usually(None),
    }
)
PHI = mapped(
    "phi",
    "PhiForCausalLM",
    PHI_KEYS,
    _phi_rules,
    always=PLAIN | {"mixer.bias": fields.ALL, "layer.placement": "parallel", "head_bias": True},
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
)
PHI3 = mapped("phi3", "Phi3ForCausalLM", PHI3_KEYS, _phi3_rules, always=llama.GATED)
