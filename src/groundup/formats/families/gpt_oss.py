"""gpt-oss (OpenAI 2025): experts with biases and clamped gates, attention sinks, windows in every other layer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, Several, without_effect
from groundup.formats.families import llama
from groundup.formats.families.mixtral import BLOCK, TRAINING_KEYS
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedExperts, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import YarnScaling

THETA = 150_000.0
# 0.1 · ln(32) + 1, as YaRN wants it: what `transformers` takes where a file says nothing of rotary positions.
DEFAULT_SCALING = YarnScaling(32.0, 4096, 1.3465735902799727, truncate=False)
DISK = "model.layers.*.mlp."


def rules(config: ModelConfig) -> Sequence[Rule]:
    """LLaMA's names; the experts' matrices as (experts, inputs, outputs), gate and up in turns."""
    gate_and_up = f"{BLOCK}experts.gate.", f"{BLOCK}experts.up."
    return [
        *with_biases(same(llama.NAMES | {f"{BLOCK}router.weight": f"{DISK}router.weight"})),
        *same(
            {
                "layers.*.mixer.sinks": "model.layers.*.self_attn.sinks",
                f"{BLOCK}experts.down.bias": f"{DISK}experts.down_proj_bias",
            }
        ),
        _experts_rule([f"{name}weight" for name in gate_and_up], "gate_up_proj", True),
        _experts_rule([f"{name}bias" for name in gate_and_up], "gate_up_proj_bias", False),
        _experts_rule([f"{BLOCK}experts.down.weight"], "down_proj", True),
    ]


def _experts_rule(ours: Sequence[str], disk: str, transposed: bool) -> Rule:
    return Rule(
        tuple(ours), (f"{DISK}experts.{disk}",), JoinedExperts(alternating=len(ours) > 1, transposed=transposed)
    )


def _read_scaling(keys: Keys, facts: Facts) -> None:
    if keys.table("rope_parameters") is None and keys.table("rope_scaling") is None:
        facts["mixer.rope"] = replace(facts["mixer.rope"], scaling=DEFAULT_SCALING)


def _pass_over_activation(keys: Keys, facts: Facts) -> None:
    """Whatever the key says, gates are SiLU's."""
    keys.choice("hidden_act", among=fields.ACTIVATIONS, default="silu")


def _write_scaling(config: ModelConfig) -> dict[str, Any]:
    """Nothing at all would mean the default."""
    rope = config.layers[0].attention.rope
    return {} if rope is None or rope.scaling is not None else {"rope_scaling": {"rope_type": "default"}}


# Two of the keys repeat what others say; published files hold them.
KEYS = (
    llama.KEYS
    | TRAINING_KEYS
    | without_effect("experts_per_token initial_context_length")
    | {
        "hidden_act": Several(_pass_over_activation, lambda config: {"hidden_act": "silu"}),
        "rms_norm_eps": fields.EPS.usually(1e-5),
        "head_dim": fields.HEAD_DIM.usually(64),
        "num_key_value_heads": fields.KV_HEADS.usually(8),
        "max_position_embeddings": fields.POSITIONS.usually(131_072),
        "rope_theta": fields.Rotary(THETA),
        "rope_scaling": Several(_read_scaling, _write_scaling),
        "attention_bias": fields.BIASES.usually(True),
        "sliding_window": fields.Windows(128, period=2),
        "num_local_experts": fields.EXPERTS.also("num_experts").usually(128),
        "num_experts_per_tok": fields.CHOSEN.usually(4),
        "swiglu_alpha": Field("expert.sharpness", Keys.positive, default=1.702),
        "swiglu_limit": Field("expert.limit", Keys.positive, default=7.0),
    }
)
ALWAYS = llama.GATED | {
    "mixer.sinks": True,
    "feed_forward.activation": "silu",
    "expert.bias": True,
    "expert.up_offset": 1.0,
    "router.bias": True,
}
GPT_OSS = mapped("gpt_oss", "GptOssForCausalLM", KEYS, rules, always=ALWAYS)
