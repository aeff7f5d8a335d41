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
from groundup.model.sizes import Sizes
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm


def bert(sizes: Sizes) -> ModelConfig:
    """BERT (Devlin et al. 2019): norms after each sum, learned positions, GELU, a transform before the tied head."""
    norm = Norm("layer", 1e-12, bias=True)
    heads = sizes.heads
    attention = Attention(heads, heads, sizes.head_dim, bias=("query", "key", "value", "output"), causal=False)
    feed_forward = FeedForward(4 * sizes.width, "gelu", gated=False, bias=True)
    return sizes.model(
        "bert",
        LayerSpec(attention, feed_forward, norm, placement="post"),
        None,
        embedding_norm=norm,
        learned_positions=LearnedPositions(sizes.context),
        token_types=2,
        head_transform=HeadTransform("gelu", norm),
        head_bias=True,
    )


def modernbert(sizes: Sizes) -> ModelConfig:
    """ModernBERT (Warner et al. 2024): norms before each part, rotary positions, GeGLU, no biases inside.

    In two of three layers a token sees only its neighbours, on either side a sixteenth of the context (64 of 1,024
    there).
    """
    norm = Norm("layer", 1e-5)
    heads = sizes.heads

    def layer(index: int) -> LayerSpec:
        """Every third layer sees the whole text, and turns by longer waves; the others see their neighbours."""
        window, theta = (sizes.part_of_context(16), 10_000.0) if index % 3 else (None, 160_000.0)
        attention = Attention(heads, heads, sizes.head_dim, rope=Rope(theta=theta), window=window, causal=False)
        feed_forward = FeedForward(-(-sizes.width * 3 // 2 // 64) * 64, "gelu", gated=True)
        return LayerSpec(attention, feed_forward, norm, mixer_norm=index > 0)  # the embedding is normed already

    return sizes.model(
        "modernbert",
        [layer(index) for index in range(sizes.depth)],
        norm,
        embedding_norm=norm,
        head_transform=HeadTransform("gelu", norm, bias=False),
        head_bias=True,
    )


def t5(sizes: Sizes) -> EncoderDecoderConfig:
    """T5 (Raffel et al. 2020): relative positions, unscaled scores, ReLU, a tied head with scaled logits.

    As many layers in the encoder as in the decoder.
    """
    norm = Norm("rms", 1e-6)
    relative = RelativePositions(buckets=32, max_distance=128)
    feed_forward = FeedForward(4 * sizes.width, "relu", gated=False)

    def attention(causal: bool) -> Attention:
        return Attention(sizes.heads, sizes.heads, sizes.head_dim, scale=1.0, causal=causal)

    encoder_layer = LayerSpec(attention(causal=False), feed_forward, norm)
    decoder_layer = LayerSpec(attention(causal=True), feed_forward, norm, cross=attention(causal=False))
    return EncoderDecoderConfig(
        family="t5",
        encoder=StackConfig(
            width=sizes.width,
            layers=(encoder_layer,) * sizes.depth,
            final_norm=norm,
            relative_positions=relative,
        ),
        decoder=sizes.model("t5", decoder_layer, norm, relative_positions=relative, logit_scale=sizes.width**-0.5),
    )
