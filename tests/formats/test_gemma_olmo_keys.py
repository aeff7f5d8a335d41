"""Gemma's and OLMo's keys as version 4 of `transformers` wrote them, their defaults, and values that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from groundup.formats.huggingface import COMMON_KEYS, FAMILIES
from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 96,
    "intermediate_size": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 13,
}
YARN = {
    "attention_factor": 1.25,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "factor": 8.0,
    "original_max_position_embeddings": 512,
    "rope_type": "yarn",
}
OLD: dict[str, dict[str, Any]] = {
    "gemma": {"hidden_act": "gelu", "hidden_activation": None, "num_key_value_heads": 1, "rope_theta": 2000.0},
    "gemma2": {
        "cache_implementation": "hybrid",
        "hidden_act": "gelu",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 144,
        "rope_theta": 2000.0,
        "sliding_window": 512,
        "sliding_window_size": 1024,
    },
    "gemma3_text": {
        "cache_implementation": "hybrid",
        "rope_local_base_freq": 300.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_theta": 2000.0,
        "sliding_window_pattern": 4,
    },
    "olmo2": {"num_key_value_heads": 4, "rope_scaling": None, "rope_theta": 2000.0},
    "olmo3": {"max_position_embeddings": 4096, "rope_scaling": YARN, "rope_theta": 500_000},
}
# Family, key and value, and what the refusal names.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma", {"hidden_act": "no such"}, "hidden_act"),
    ("gemma", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("gemma2", {"hidden_activation": "no such"}, "hidden_activation"),
    ("gemma2", {"layer_types": ["full_attention"] * 12 + ["chunked_attention"]}, "layer_types"),
    ("gemma2", {"layer_types": ["full_attention"] * 12}, "layer_types"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    (
        "gemma2",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "no_such_key": 0.5}},
        "rope_scaling.no_such_key",
    ),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 2000.0}}, "rope_parameters.rope_theta"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window"),
    ("olmo2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
    ("olmo2", {"rope_scaling": {"rope_type": "no such"}}, "rope_scaling.rope_type"),
    ("olmo3", {"rope_parameters": {"full_attention": {"attention": 0.5}}}, "rope_parameters.full_attention.attention"),
    ("olmo3", {"rope_scaling": YARN | {"factor": -1.0}}, "rope_scaling.factor"),
]


def _read(family: str, values: dict[str, Any]) -> ModelConfig:
    keys = Keys(values)
    keys.without_effect(*COMMON_KEYS)
    config = FAMILIES[family].read(keys)
    if unread := keys.unread():
        raise ValueError(f"`{unread[0]}` was not read")
    return config


@pytest.mark.parametrize(("family", "old"), [*OLD.items(), *((family, {}) for family in OLD)])
def test_old_keys_and_absent_ones_mean_what_transformers_takes_them_for(
    family: str, old: dict[str, Any], tmp_path: Path
):
    values = SIZES | old | {"model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(values))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in new
    assert _read(family, values) == _read(family, new)


def test_the_base_of_an_old_olmo3_is_that_of_every_layer():
    """As version 4 reads it; version 5 takes it for the layers of full attention alone."""
    config = _read("olmo3", SIZES | {"rope_theta": 300.0})
    assert {layer.attention.rope for layer in config.layers} == {Rope(300.0)}


@pytest.mark.parametrize(("family", "keys", "named"), REFUSED)
def test_what_our_parts_cannot_express_is_refused_by_its_name(family: str, keys: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=f"`{named}`"):
        _read(family, SIZES | keys)
