"""Presets that do not continue text: encoders, which guess masked tokens, and encoder-decoders, which guess spans."""

from groundup.model.config import (
    EncoderDecoderConfig,
    HeadTransform,
    LearnedPositions,
    ModelConfig,
    RelativePositions,
    StackConfig,
)
from groundup.model.rotary import Rope
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


def modernbert(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """ModernBERT (Warner et al. 2024): norms before each part, rotary positions, GeGLU, no biases inside.

    In two of three layers a token sees only its neighbours, on either side a sixteenth of the context (64 of 1,024
    there).
    """
    norm = Norm("layer", 1e-5)
    heads = width // head_dim

    def layer(index: int) -> LayerSpec:
        window, theta = (max(1, context // 16), 10_000.0) if index % 3 else (None, 160_000.0)
        attention = Attention(heads, heads, head_dim, rope=Rope(theta=theta), window=window, causal=False)
        feed_forward = FeedForward(-(-width * 3 // 2 // 64) * 64, "gelu", gated=True)
        return LayerSpec(attention, feed_forward, norm, mixer_norm=index > 0)  # the embedding is normed already

    return ModelConfig(
        family="modernbert",
        vocab_size=vocab_size,
        width=width,
        layers=tuple(map(layer, range(depth))),
        final_norm=norm,
        embedding_norm=norm,
        tied_head=True,
        max_positions=context,
        head_transform=HeadTransform("gelu", norm, bias=False),
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
