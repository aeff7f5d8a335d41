"""groundup's own preset: nanochat with gates on heads, value embeddings, n-grams, mixed residuals and induction.

No class in `transformers` has these parts; the folder is laid out as one for groundup alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from groundup.formats.families import nanochat
from groundup.formats.family import Family
from groundup.model.config import Induction, ModelConfig


def to_keys(config: ModelConfig) -> dict[str, Any]:
    """nanochat's keys of config.json and our own."""
    assert config.induction is not None
    return nanochat.to_keys(config) | {
        "head_gate_layers": [index for index, layer in enumerate(config.layers) if layer.attention.head_gate],
        "induction_lengths": list(config.induction.lengths),
        "induction_places": config.induction.places,
        "ngram_buckets": list(config.ngram_buckets),
        "residual_mix": config.residual_mix,
        "value_embedding_layers": [index for index, layer in enumerate(config.layers) if layer.value_embedding],
    }


def from_keys(keys: Mapping[str, Any]) -> ModelConfig:
    """The configuration that `to_keys` wrote."""
    base = nanochat.from_keys(keys)
    gated, with_values = frozenset(keys["head_gate_layers"]), frozenset(keys["value_embedding_layers"])
    return replace(
        base,
        family="groundup",
        layers=tuple(
            replace(
                layer,
                attention=replace(layer.attention, head_gate=index in gated),
                value_embedding=index in with_values,
            )
            for index, layer in enumerate(base.layers)
        ),
        ngram_buckets=tuple(keys["ngram_buckets"]),
        induction=Induction(tuple(keys["induction_lengths"]), keys["induction_places"]),
        residual_mix=keys["residual_mix"],
    )


GROUNDUP = Family(
    name="groundup",
    architecture="GroundupForCausalLM",
    tensors=dict(nanochat.NANOCHAT.tensors)
    | {
        "induction.table.weight": "model.induction_table.weight",
        "induction.weight": "model.induction_weight",
        "induction.gate": "model.induction_gate",
        "induction.gate_bias": "model.induction_gate_bias",
        "ngrams.tables.*.weight": "model.ngram_tables.*.weight",
        "layers.*.attention.head_gate": "model.layers.*.self_attn.head_gate",
        "layers.*.mix.scalars": "model.layers.*.residual_scalars",
        "layers.*.token_values.table.weight": "model.layers.*.value_embedding.weight",
        "layers.*.token_values.gate": "model.layers.*.value_gate",
    },
    to_keys=to_keys,
    from_keys=from_keys,
    known_keys=nanochat.NANOCHAT.known_keys
    | {
        "head_gate_layers",
        "induction_lengths",
        "induction_places",
        "ngram_buckets",
        "residual_mix",
        "value_embedding_layers",
    },
)
