"""Encoders small enough to check by brute force."""

from dataclasses import replace

from tiny import VOCABULARY

from groundup.model.config import ClassifierConfig, HeadTransform, LearnedPositions, ModelConfig
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm


def encoder_config(positions: int = 64, vocab_size: int = VOCABULARY) -> ModelConfig:
    """BERT with two layers of width 32, two heads of 16, as masked language model."""
    norm = Norm("layer", 1e-12, bias=True)
    layer = LayerSpec(
        Attention(2, 2, 16, bias=("query", "key", "value", "output"), causal=False),
        FeedForward(48, "gelu", gated=False, bias=True),
        norm,
        "post",
    )
    return ModelConfig(
        family="bert",
        vocab_size=vocab_size,
        width=32,
        layers=(layer,) * 2,
        final_norm=None,
        embedding_norm=norm,
        tied_head=True,
        max_positions=positions,
        learned_positions=LearnedPositions(positions),
        token_types=2,
        head_transform=HeadTransform("gelu", norm),
        head_bias=True,
    )


def classifier_config() -> ClassifierConfig:
    """The same with three classes."""
    encoder = replace(encoder_config(), head_transform=None, head_bias=False)
    return ClassifierConfig(encoder=encoder, labels=("a", "b", "c"), transform=HeadTransform("tanh", None))
