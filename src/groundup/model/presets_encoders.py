"""Presets that do not continue text: encoders, which guess masked tokens, and encoder-decoders, which guess spans."""

from groundup.model.config import (
    EncoderDecoderConfig,
    HeadTransform,
    LearnedPositions,
    ModelConfig,
    RelativePositions,
    StackConfig,
)
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm


def bert(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """BERT (Devlin et al. 2019): norms after each sum, learned positions, GELU, a transform before the tied head."""
    norm = Norm("layer", 1e-12, bias=True)
    heads = width // head_dim
    attention = Attention(heads, heads, head_dim, bias=("query", "key", "value", "output"), causal=False)
    layer = LayerSpec(attention, FeedForward(4 * width, "gelu", gated=False, bias=True), norm, placement="post")
    return ModelConfig(
        family="bert",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        final_norm=None,
        embedding_norm=norm,
        tied_head=True,
        max_positions=context,
        learned_positions=LearnedPositions(context),
        token_types=2,
        head_transform=HeadTransform("gelu", norm),
        head_bias=True,
    )


def t5(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> EncoderDecoderConfig:
    """T5 (Raffel et al. 2020): relative positions, unscaled scores, ReLU, a tied head with scaled logits.

    As many layers in the encoder as in the decoder.
    """
    norm = Norm("rms", 1e-6)
    heads = width // head_dim
    relative = RelativePositions(buckets=32, max_distance=128)
    feed_forward = FeedForward(4 * width, "relu", gated=False)

    def attention(causal: bool) -> Attention:
        return Attention(heads, heads, head_dim, scale=1.0, causal=causal)

    return EncoderDecoderConfig(
        family="t5",
        encoder=StackConfig(
            width=width,
            layers=(LayerSpec(attention(causal=False), feed_forward, norm),) * depth,
            final_norm=norm,
            relative_positions=relative,
        ),
        decoder=ModelConfig(
            family="t5",
            vocab_size=vocab_size,
            width=width,
            layers=(LayerSpec(attention(causal=True), feed_forward, norm, cross=attention(causal=False)),) * depth,
            final_norm=norm,
            relative_positions=relative,
            tied_head=True,
            max_positions=context,
            logit_scale=width**-0.5,
        ),
    )
