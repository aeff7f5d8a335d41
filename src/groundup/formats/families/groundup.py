"""groundup's own preset: nanochat with gates on heads, value embeddings, n-grams, mixed residuals and induction.

No class in `transformers` has these parts; the folder is laid out as one for groundup alone.
"""

from dataclasses import dataclass
from typing import Any

from groundup.formats.config_map import Facts, Field, PerLayer, Several
from groundup.formats.families import nanochat
from groundup.formats.family import mapped
from groundup.formats.keys import Keys
from groundup.formats.rules import Rule, same
from groundup.model.config import ModelConfig, StackConfig
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


@dataclass(frozen=True)
class ChosenLayers:
    """A switch that is on in the layers whose numbers the key lists."""

    place: str

    def read(self, key: str, keys: Keys, facts: Facts) -> None:
        chosen = frozenset(keys.numbers(key))
        facts[self.place] = PerLayer(tuple(index in chosen for index in range(facts["layers"])))

    def write(self, key: str, config: StackConfig) -> dict[str, Any]:
        part, name = self.place.split(".")
        owners = [layer.mixer if part == "mixer" else layer for layer in config.layers]
        return {key: [index for index, owner in enumerate(owners) if getattr(owner, name)]}


def _read_induction(keys: Keys, facts: Facts) -> None:
    facts["induction"] = Induction(tuple(keys.sizes("induction_lengths")), keys.size("induction_places"))


def _write_induction(config: ModelConfig) -> dict[str, Any]:
    assert config.induction is not None
    return {"induction_lengths": list(config.induction.lengths), "induction_places": config.induction.places}


KEYS = nanochat.KEYS | {
    "head_gate_layers": ChosenLayers("mixer.head_gate"),
    "value_embedding_layers": ChosenLayers("layer.value_embedding"),
    "ngram_buckets": Field("ngram_buckets", Keys.sizes, ours=tuple, theirs=list),
    "induction_lengths": Several(_read_induction, _write_induction),
    "residual_mix": Field("residual_mix", Keys.flag),
}


GROUNDUP = mapped("groundup", "GroundupForCausalLM", KEYS, rules, always=nanochat.ALWAYS)
