"""BERT in llama.cpp (its src/models/bert.cpp): the layers alone, which give a vector for each token."""

from dataclasses import replace
from functools import partial

from groundup.formats import fields
from groundup.formats.config_map import Facts, Field, norm_of, without_effect
from groundup.formats.families.gpt import PLAIN
from groundup.formats.gguf import layout
from groundup.formats.gguf.model_keys import LAYER_NORM_KEYS, WIDE_HEADS, Tensors
from groundup.formats.keys import Keys
from groundup.model.config import ModelConfig

# llama.cpp has one GELU for both kinds, the tanh formula from a table. Files by other hands do not say which of them
# their model was trained with, BERT's own being the exact one; ours say it in a key that llama.cpp passes over.
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh"}
BERT_KEYS = (
    LAYER_NORM_KEYS
    | WIDE_HEADS
    | without_effect("pooling_type")  # what is made of the vectors afterwards
    | {
        "activation": Field(
            "feed_forward.activation",
            partial(Keys.choice, among=ACTIVATIONS),
            default="gelu",
            theirs=lambda kind: None if kind == "gelu" else kind,
        )
    }
)


def without_head(config: ModelConfig) -> ModelConfig:
    """What llama.cpp computes of an encoder: no transform, and a tied head, which costs nothing and is of no use."""
    return replace(config, tied_head=True, head_transform=None, head_bias=False)


def bert_facts(tensors: Tensors) -> Facts:
    """BERT, or DistilBERT where there is no table of token types."""
    kinds = tensors.shapes[layout.TOKEN_TYPES][0] if tensors.have(layout.TOKEN_TYPES) else 0
    return PLAIN | {
        "family": "bert" if kinds else "distilbert",
        "mixer.bias": fields.ALL,
        "mixer.causal": False,
        "layer.placement": "post",
        "tied_head": True,
        "final_norm": None,
        "embedding_norm": norm_of,
        "learned_positions": fields.learned_positions(),
        "token_types": kinds,
    }
