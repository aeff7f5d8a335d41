"""Presets with layers that remember in a state of fixed size, or look back over a few tokens."""

from dataclasses import replace

from groundup.model.config import ModelConfig
from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, FeedForward, LayerSpec, Norm, QueryKeyNorm


def mamba(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Mamba (Gu and Dao 2023): layers that are a mixer alone, of twice the width, with 16 numbers per channel."""
    norm = Norm("rms", 1e-5)
    layer = LayerSpec(Mamba(2 * width, 16, rank=-(-width // 16)), None, norm)
    return ModelConfig(
        family="mamba",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        final_norm=norm,
        tied_head=True,
        max_positions=context,
    )


def mamba2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Mamba-2 (Dao and Gu 2024): the same with heads, one group of them, and 64 numbers per channel."""
    base = mamba(depth, vocab_size, context, width, head_dim)
    norm = base.layers[0].norm
    layer = LayerSpec(Mamba2(2 * width // head_dim, head_dim, 64, groups=1, norm=norm), None, norm)
    return replace(base, family="mamba2", layers=(layer,) * depth)


def qwen3_next(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Qwen3-Next (2025) without experts: three layers of the gated delta rule to one of gated attention.

    As there, values are twice as wide as the model, in twice as many heads as keys. Less than four layers end with the
    one of attention.
    """
    norm = Norm("rms_plus_one", 1e-6)
    heads = width // head_dim
    feed_forward = FeedForward(-(-width * 8 // 3 // 64) * 64, "silu", gated=True)
    rope = Rope(dims=head_dim // 4)
    attention = Attention(heads, heads, head_dim, rope=rope, query_key_norm=QueryKeyNorm(norm), output_gate=True)
    delta = GatedDeltaNet(heads, 2 * heads, head_dim, head_dim)
    every = min(4, depth)
    mixers = [delta if (index + 1) % every else attention for index in range(depth)]
    return ModelConfig(
        family="qwen3_next",
        vocab_size=vocab_size,
        width=width,
        layers=tuple(LayerSpec(mixer, feed_forward, norm) for mixer in mixers),
        final_norm=norm,
        tied_head=True,
        max_positions=context,
    )


def lfm2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """LFM2 (Liquid AI 2025): two layers of gated short convolutions to one of attention, SwiGLU of 4 widths.

    Less than three layers end with the one of attention.
    """
    norm = Norm("rms", 1e-5)
    heads = width // head_dim
    attention = Attention(heads, heads, head_dim, rope=Rope(1_000_000.0), query_key_norm=QueryKeyNorm(norm))
    every = min(3, depth)
    mixers = [ShortConvolution(3) if (index + 1) % every else attention for index in range(depth)]
    return ModelConfig(
        family="lfm2",
        vocab_size=vocab_size,
        width=width,
        layers=tuple(LayerSpec(mixer, FeedForward(4 * width, "silu", gated=True), norm) for mixer in mixers),
        final_norm=norm,
        tied_head=True,
        max_positions=context,
    )
