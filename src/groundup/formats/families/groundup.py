"""groundup's own preset: nanochat with gates on heads, value embeddings, n-grams, mixed residuals and induction.

No class in `transformers` has these parts; the folder is laid out as one for groundup alone.
"""

from dataclasses import replace
from typing import Any

from groundup.formats.families import nanochat
from groundup.formats.family import Family
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same
from groundup.model.config import ModelConfig
from groundup.model.specs import Induction

NAMES = {
    "induction.table.weight": "model.induction_table.weight",
    "induction.weight": "model.induction_weight",
    "induction.gate": "model.induction_gate",
    "induction.gate_bias": "model.induction_gate_bias",
    "layers.*.mixer.head_gate": "model.layers.*.self_attn.head_gate",
    "layers.*.mix.scalars": "model.layers.*.residual_scalars",
    "layers.*.token_values.table.weight": "model.layers.*.value_embedding.weight",
    "layers.*.token_values.gate": "model.layers.*.value_gate",
}


def rules(config: ModelConfig) -> list[Rule]:
    """nanochat's names and our own."""
    tables = {f"ngrams.tables.{i}.weight": f"model.ngram_tables.{i}.weight" for i in range(len(config.ngram_buckets))}
    return [*nanochat.rules(config), *same(NAMES | tables)]


def read(keys: Keys) -> ModelConfig:
    """The configuration that `write` wrote."""
    base = nanochat.read(keys)
    gated, with_values = frozenset(keys.numbers("head_gate_layers")), frozenset(keys.numbers("value_embedding_layers"))
    layers = (
        replace(layer, mixer=replace(layer.attention, head_gate=index in gated), value_embedding=index in with_values)
        for index, layer in enumerate(base.layers)
    )
    return replace(
        base,
        family="groundup",
        layers=tuple(layers),
        ngram_buckets=tuple(keys.sizes("ngram_buckets")),
        induction=Induction(tuple(keys.sizes("induction_lengths")), keys.size("induction_places")),
        residual_mix=keys.flag("residual_mix"),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """nanochat's keys of config.json and our own."""
    assert config.induction is not None
    return nanochat.write(config) | {
        "head_gate_layers": [index for index, layer in enumerate(config.layers) if layer.attention.head_gate],
        "induction_lengths": list(config.induction.lengths),
        "induction_places": config.induction.places,
        "ngram_buckets": list(config.ngram_buckets),
        "residual_mix": config.residual_mix,
        "value_embedding_layers": [index for index, layer in enumerate(config.layers) if layer.value_embedding],
    }


GROUNDUP = Family("groundup", "GroundupForCausalLM", read, write, rules)
