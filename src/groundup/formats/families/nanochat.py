"""nanochat (Karpathy 2025): norms without weight, rotation the other way round, relu² without a gate, softcap."""

from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same, with_biases
from groundup.model.config import ModelConfig
from groundup.model.specs import QueryKeyNorm


def rules(config: ModelConfig) -> list[Rule]:
    """LLaMA's names, but for the feed-forward network."""
    own = {
        "layers.*.feed_forward.up.weight": "model.layers.*.mlp.fc1.weight",
        "layers.*.feed_forward.down.weight": "model.layers.*.mlp.fc2.weight",
    }
    return with_biases(same(llama.NAMES | own))


def read(keys: Keys) -> ModelConfig:
    """The configuration of a folder."""
    config = llama.read_base(keys, "nanochat", norm="rms_without_weight", activation="relu2")
    layer = config.layers[0]
    assert layer.attention.rope is not None
    mixer = replace(
        layer.attention,
        rope=replace(layer.attention.rope, reversed=True),
        query_key_norm=QueryKeyNorm(layer.norm, after_rope=True),
        bias=("query", "key", "value", "output") if keys.flag("attention_bias", default=False) else (),
    )
    layer = replace(layer, mixer=mixer, feed_forward=replace(layer.network, gated=False))
    return replace(
        config,
        layers=(layer,) * len(config.layers),
        embedding_norm=config.final_norm,
        logit_softcap=keys.optional_positive("final_logit_softcapping", default=15.0),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The family's keys of config.json."""
    layer = config.layers[0]
    keys = llama.write_base(config) | {
        "attention_bias": bool(layer.attention.bias),
        "final_logit_softcapping": config.logit_softcap,
        "rms_norm_eps": layer.norm.eps,
    }
    return keys


NANOCHAT = Family("nanochat", "NanoChatForCausalLM", read, write, rules)
