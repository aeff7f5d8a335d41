"""gpt-oss (OpenAI 2025): experts with biases and clamped gates, attention sinks, windows in every other layer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.families.mixtral import BLOCK, TRAINING_KEYS, experts_of
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import JoinedExperts, Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.rotary import YarnScaling
from groundup.model.specs import Experts, Router

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


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder."""
    # The last two repeat what other keys say; published files hold them.
    keys.without_effect(*TRAINING_KEYS, "experts_per_token", "initial_context_length")
    config = llama.read_base(
        keys,
        "gpt_oss",
        eps=("rms_norm_eps", 1e-5),
        theta=THETA,
        fraction=None,
        positions=131_072,
        head_dim=64,
        kv_heads=8,
    )
    config = llama.with_mixers(config, sinks=True, bias=llama.ALL if keys.flag("attention_bias", default=True) else ())
    if keys.table("rope_parameters") is None and keys.table("rope_scaling") is None:
        rope = config.layers[0].attention.rope
        assert rope is not None
        config = llama.with_mixers(config, rope=replace(rope, scaling=DEFAULT_SCALING))
    expert = replace(
        config.layers[0].network,
        activation="silu",  # whatever `hidden_act` says
        bias=True,
        sharpness=keys.positive("swiglu_alpha", default=1.702),
        limit=keys.positive("swiglu_limit", default=7.0),
        up_offset=1.0,
    )
    router = Router(
        keys.size("num_local_experts", "num_experts", default=128),
        keys.size("num_experts_per_tok", default=4),
        bias=True,
    )
    config = llama.with_layers(config, feed_forward=Experts(expert, router))
    kinds = keys.texts("layer_types") or [
        "full_attention" if index % 2 else "sliding_attention" for index in range(len(config.layers))
    ]
    return llama.with_windows(config, keys.optional_size("sliding_window", default=128), kinds)


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    layer, experts = config.layers[0], experts_of(config)
    keys = llama.write_base(config) | llama.write_windows(config)
    return keys | {
        "attention_bias": bool(layer.attention.bias),
        "num_experts_per_tok": experts.router.chosen,
        "num_local_experts": experts.router.experts,
        "rms_norm_eps": layer.norm.eps,
        # Nothing at all would mean the default scaling.
        "rope_scaling": keys["rope_scaling"] or {"rope_type": "default"},
        "swiglu_alpha": experts.expert.sharpness,
        "swiglu_limit": experts.expert.limit,
    }


GPT_OSS = Family("gpt_oss", "GptOssForCausalLM", read, write, rules)
