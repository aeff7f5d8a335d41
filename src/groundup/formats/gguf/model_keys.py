"""The keys that all architectures of llama.cpp have, and what the tensors of a file add to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from groundup.formats import fields
from groundup.formats.config_map import ConfigMap, Facts, Field, Several, without_effect
from groundup.formats.gguf import layout
from groundup.formats.gguf.ropes import read_rope, write_rope
from groundup.formats.keys import Keys
from groundup.formats.rules import Shape
from groundup.model.config import ModelConfig
from groundup.model.specs import Projection

CAUSAL = "attention.causal"
MOST_LAYERS = 512  # llama.cpp's own limit
QUERY_KEY_VALUE: tuple[Projection, ...] = ("query", "key", "value")


class Tensors(NamedTuple):
    """What the tensors of a file say of its model: their shapes, and the factors on its frequencies, if it has any."""

    shapes: Mapping[str, Shape]
    frequencies: Tensor | None = None

    def have(self, name: str) -> bool:
        return name in self.shapes

    def facts(self) -> Facts:
        """Of any model. Raises ValueError where there is no embedding."""
        if not self.have(layout.EMBEDDING):
            raise ValueError(f"tensor `{layout.EMBEDDING}` is missing")
        return {"vocab_size": self.shapes[layout.EMBEDDING][0], "tied_head": not self.have(layout.HEAD)}


def _check_vocabulary(keys: Keys, facts: Facts) -> None:
    keys.fixed(vocab_size=facts["vocab_size"])


def _read_layers(keys: Keys, facts: Facts) -> None:
    if (layers := keys.size("block_count")) > MOST_LAYERS:
        raise ValueError(f"`block_count` is {layers}, more than the {MOST_LAYERS} that llama.cpp knows")
    facts["layers"] = layers


def _check_heads(keys: Keys, facts: Facts) -> None:
    head_dim = facts["mixer.head_dim"]
    keys.fixed(**{"attention.value_length": head_dim, "rope.dimension_count": head_dim})


def _check_wide_heads(keys: Keys, facts: Facts) -> None:
    """The heads must make up the width: llama.cpp sizes some output projections so. Raises ValueError."""
    _check_heads(keys, facts)
    heads, head_dim, width = facts["mixer.heads"], facts["mixer.head_dim"], facts["width"]
    if heads * head_dim != width:
        raise ValueError(f"{heads} heads of {head_dim} must make up the width of {width}")


def _write_heads(config: ModelConfig) -> dict[str, Any]:
    return {"attention.value_length": config.layers[0].attention.head_dim}


def _check_order(keys: Keys, facts: Facts) -> None:
    causal = facts.get("mixer.causal", True)
    if (found := keys.flag(CAUSAL, default=True)) != causal:
        raise ValueError(f"`{CAUSAL}` is {found}, only {causal} is supported for a {facts['family']}")


def _read_rope(keys: Keys, facts: Facts) -> None:
    facts["mixer.rope"] = read_rope(keys, None)


def write_rotary(config: ModelConfig) -> dict[str, Any]:
    """The keys of rotary positions, the same in all layers."""
    mixer = config.layers[0].attention
    return write_rope(mixer.rope, mixer.head_dim)


KEYS: ConfigMap = {
    **without_effect("rope.scaling.finetuned tensor_data_layout"),
    "vocab_size": Several(_check_vocabulary, lambda config: {"vocab_size": config.vocab_size}),
    "context_length": fields.POSITIONS,
    "embedding_length": fields.WIDTH,
    "block_count": Several(_read_layers, lambda config: {"block_count": len(config.layers)}),
    "feed_forward_length": fields.INNER,
    "attention.head_count": fields.HEADS,
    "attention.head_count_kv": Field("mixer.kv_heads", Keys.size, default=lambda facts: facts["mixer.heads"]),
    "attention.key_length": Field(
        "mixer.head_dim", Keys.size, default=lambda facts: facts["width"] // facts["mixer.heads"]
    ),
    "attention.value_length": Several(_check_heads, _write_heads),
    CAUSAL: Several(_check_order, lambda config: {} if config.causal else {CAUSAL: False}),
}
WIDE_HEADS = {"attention.value_length": Several(_check_wide_heads, _write_heads)}
LAYER_NORM_KEYS = KEYS | {"attention.layer_norm_epsilon": fields.EPS}
ROTARY_KEYS = KEYS | {
    "attention.layer_norm_rms_epsilon": fields.EPS,
    "rope.freq_base": Several(_read_rope, write_rotary),
}
