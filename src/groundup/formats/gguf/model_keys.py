"""The keys that all architectures of llama.cpp have, and what the tensors of a file add to them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from groundup.formats.gguf import layout
from groundup.formats.keys import Keys
from groundup.formats.rules import Shape
from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope
from groundup.model.specs import Activation, Attention, FeedForward, LayerSpec, Norm, NormKind, Projection

RMS_EPS, LAYER_EPS = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
CAUSAL = "attention.causal"
MOST_LAYERS = 512  # llama.cpp's own limit
QUERY_KEY_VALUE: tuple[Projection, ...] = ("query", "key", "value")


class Tensors(NamedTuple):
    """What the tensors of a file say of its model: their shapes, and the factors on its frequencies, if it has any."""

    shapes: Mapping[str, Shape]
    frequencies: Tensor | None = None

    def have(self, name: str) -> bool:
        return name in self.shapes


def read_base(
    keys: Keys,
    tensors: Tensors,
    family: str,
    *,
    rope: Rope | None,
    norm: NormKind = "rms",
    eps: str = RMS_EPS,
    activation: Activation = "silu",
    bias: tuple[Projection, ...] = (),
    tied: bool | None = None,
    causal: bool = True,
) -> ModelConfig:
    """A model of LLaMA's shape, all layers alike; tied: whether the head is the embedding, None where the file says.

    Raises ValueError or KeyError, naming the key.
    """
    keys.without_effect("rope.scaling.finetuned", "tensor_data_layout")
    width, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length", default=width // heads)
    if not tensors.have(layout.EMBEDDING):
        raise ValueError(f"tensor `{layout.EMBEDDING}` is missing")
    vocabulary = tensors.shapes[layout.EMBEDDING][0]
    keys.fixed(**{"attention.value_length": head_dim, "rope.dimension_count": head_dim})
    if (found := keys.flag(CAUSAL, default=True)) != causal:
        raise ValueError(f"`{CAUSAL}` is {found}, only {causal} is supported for a {family}")
    keys.fixed(vocab_size=vocabulary)
    normed = Norm(norm, keys.positive(eps), bias=norm == "layer")
    if (layers := keys.size("block_count")) > MOST_LAYERS:
        raise ValueError(f"`block_count` is {layers}, more than the {MOST_LAYERS} that llama.cpp knows")
    kv_heads = keys.size("attention.head_count_kv", default=heads)
    layer = LayerSpec(
        Attention(heads, kv_heads, head_dim, rope=rope, bias=bias, causal=causal),
        FeedForward(keys.size("feed_forward_length"), activation, gated=True),
        normed,
    )
    return ModelConfig(
        family=family,
        vocab_size=vocabulary,
        width=width,
        layers=(layer,) * layers,
        final_norm=normed,
        tied_head=not tensors.have(layout.HEAD) if tied is None else tied,
        max_positions=keys.size("context_length"),
    )


def write_base(config: ModelConfig, eps: str = RMS_EPS) -> dict[str, Any]:
    """The keys that `read_base` reads."""
    layer = config.layers[0]
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.width,
        "block_count": len(config.layers),
        "feed_forward_length": layer.network.width,
        "attention.head_count": layer.attention.heads,
        "attention.head_count_kv": layer.attention.kv_heads,
        "attention.key_length": layer.attention.head_dim,
        "attention.value_length": layer.attention.head_dim,
        eps: layer.norm.eps,
    }


def all_width(config: ModelConfig) -> ModelConfig:
    """The model, if its heads make up its width: llama.cpp sizes some output projections so. Raises ValueError."""
    mixer = config.layers[0].attention
    if mixer.heads * mixer.head_dim != config.width:
        raise ValueError(f"{mixer.heads} heads of {mixer.head_dim} must make up the width of {config.width}")
    return config
