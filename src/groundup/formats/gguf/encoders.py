"""BERT in llama.cpp (its src/models/bert.cpp): the layers alone, which give a vector for each token."""

from dataclasses import replace
from typing import Any

from groundup.formats.families import llama
from groundup.formats.gguf import layout
from groundup.formats.gguf.model_keys import CAUSAL, LAYER_EPS, Tensors, all_width, read_base, write_base
from groundup.formats.keys import Keys
from groundup.model.config import LearnedPositions, ModelConfig

# llama.cpp has one GELU for both kinds, the tanh formula from a table. Files by other hands do not say which of them
# their model was trained with, BERT's own being the exact one; ours say it in a key that llama.cpp passes over.
ACTIVATION = "activation"
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh"}


def without_head(config: ModelConfig) -> ModelConfig:
    """What llama.cpp computes of an encoder: no transform, and a tied head, which costs nothing and is of no use."""
    return replace(config, tied_head=True, head_transform=None, head_bias=False)


def read_bert(keys: Keys, tensors: Tensors) -> ModelConfig:
    """BERT, or DistilBERT where there is no table of token types. Raises ValueError or KeyError, naming the key."""
    keys.without_effect("pooling_type")  # what is made of the vectors afterwards
    kinds = tensors.shapes[layout.TOKEN_TYPES][0] if tensors.have(layout.TOKEN_TYPES) else 0
    config = read_base(
        keys,
        tensors,
        "bert" if kinds else "distilbert",
        rope=None,
        norm="layer",
        eps=LAYER_EPS,
        activation=keys.choice(ACTIVATION, among=ACTIVATIONS, default="gelu"),
        bias=llama.ALL,
        tied=True,
        causal=False,
    )
    network = replace(config.layers[0].network, gated=False, bias=True)
    return replace(
        llama.with_layers(all_width(config), feed_forward=network, placement="post"),
        final_norm=None,
        embedding_norm=config.final_norm,
        learned_positions=LearnedPositions(config.max_positions),
        token_types=kinds,
    )


def write_bert(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_bert` reads."""
    kind = config.layers[0].network.activation
    return write_base(config, LAYER_EPS) | {CAUSAL: False} | ({} if kind == "gelu" else {ACTIVATION: kind})
