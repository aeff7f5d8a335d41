"""Maps of keys say the same in both directions, and make the layers that their facts describe."""

import json
from dataclasses import replace

import pytest

from groundup.formats import fields
from groundup.formats.config_map import PerLayer, layers_of, read_facts, without_effect, write_keys
from groundup.formats.families import ALL_FAMILIES
from groundup.formats.families.llama import LLAMA_KEYS
from groundup.formats.keys import Keys
from groundup.model.presets import PRESETS, build_config
from groundup.model.specs import Attention, Experts, FeedForward, LayerSpec, Norm, Router

FACTS = {
    "layers": 3,
    "mixer.heads": 4,
    "mixer.kv_heads": 2,
    "mixer.head_dim": 8,
    "feed_forward.width": 48,
    "feed_forward.activation": "silu",
    "feed_forward.gated": True,
    "norm.eps": 1e-3,
}
LAYER = LayerSpec(Attention(4, 2, 8), FeedForward(48, "silu", gated=True), Norm("rms", 1e-3))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_keys_of_a_configuration_say_all_of_it(preset: str, depth: int):
    config = build_config(preset, depth, vocab_size=100, context=64)
    family = next(one for one in ALL_FAMILIES if one.name == config.family)
    keys = Keys(json.loads(json.dumps(family.write(config))) | {"architectures": [family.architecture]})
    keys.without_effect("architectures", "is_encoder_decoder")
    assert family.read(keys) == config
    assert keys.unread() == []


def test_a_field_is_read_by_its_older_names_too_and_written_by_the_first():
    table = {"num_experts": fields.EXPERTS.also("n_experts"), "top": fields.CHOSEN.usually(2)}
    facts = read_facts(table, Keys({"n_experts": 6}))
    assert facts == {"router.experts": 6, "router.chosen": 2}
    sparse = layers_of(FACTS | facts)[0]
    config = replace(build_config("llama", 1, 100, 64), layers=(sparse,))
    assert write_keys(table, config) == {"num_experts": 6, "top": 2}


def test_null_means_what_follows_from_other_keys():
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "intermediate_size": 8,
        "vocab_size": 9,
        "num_hidden_layers": 1,
    }
    for unsaid in ({}, {"num_key_value_heads": None, "head_dim": None}):
        facts = read_facts(LLAMA_KEYS, Keys(sizes | unsaid))
        assert (facts["mixer.kv_heads"], facts["mixer.head_dim"]) == (6, 8)


def test_facts_may_follow_from_others_and_differ_from_layer_to_layer():
    facts = FACTS | {"mixer.window": PerLayer((5, None, 7)), "mixer.scale": lambda facts: 1 / facts["mixer.heads"]}
    expected = [replace(LAYER, mixer=replace(LAYER.attention, window=window, scale=0.25)) for window in (5, None, 7)]
    assert list(layers_of(facts)) == expected


def test_experts_are_like_the_dense_network_but_for_what_is_said_of_them():
    experts = {"router.experts": 4, "router.chosen": 2, "expert.width": 20, "shared.width": 12}
    sparse = {"layer.sparse": PerLayer((False, True, True))}
    dense = LAYER.network
    own = Experts(replace(dense, width=20), Router(4, 2), replace(dense, width=12))
    assert list(layers_of(FACTS | experts | sparse)) == [LAYER, *[replace(LAYER, feed_forward=own)] * 2]


def test_keys_without_effect_are_read_and_not_written():
    table, keys = without_effect("dropout cache"), Keys({"dropout": 0.1, "other": 1})
    assert read_facts(table, keys) == {}
    assert keys.unread() == ["other"]
    assert write_keys(table, build_config("llama", 1, 100, 64)) == {}
