"""Presets with layers that remember in a state of fixed size, or look back over a few tokens."""

from groundup.model.config import ModelConfig
from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope
from groundup.model.sizes import Sizes
from groundup.model.specs import Attention, FeedForward, LayerSpec, Mixer, Norm, QueryKeyNorm


def mamba(sizes: Sizes) -> ModelConfig:
    """Mamba (Gu and Dao 2023): layers that are a mixer alone, of twice the width, with 16 numbers per channel."""
    norm = Norm("rms", 1e-5)
    return sizes.model("mamba", LayerSpec(Mamba(2 * sizes.width, 16, rank=-(-sizes.width // 16)), None, norm), norm)


def mamba2(sizes: Sizes) -> ModelConfig:
    """Mamba-2 (Dao and Gu 2024): the same with heads, one group of them, and 64 numbers per channel."""
    norm = Norm("rms", 1e-5)
    mixer = Mamba2(2 * sizes.heads, sizes.head_dim, 64, groups=1, norm=norm)
    return sizes.model("mamba2", LayerSpec(mixer, None, norm), norm)


def qwen3_next(sizes: Sizes) -> ModelConfig:
    """Qwen3-Next (2025) without experts: three layers of the gated delta rule to one of gated attention.

    As there, values are twice as wide as the model, in twice as many heads as keys.
    """
    norm = Norm("rms_plus_one", 1e-6)
    heads, head_dim = sizes.heads, sizes.head_dim
    feed_forward = FeedForward(sizes.gated(), "silu", gated=True)
    rope = Rope(dims=head_dim // 4)
    attention = Attention(heads, heads, head_dim, rope=rope, query_key_norm=QueryKeyNorm(norm), output_gate=True)
    delta = GatedDeltaNet(heads, 2 * heads, head_dim, head_dim)
    layers = [LayerSpec(mixer, feed_forward, norm) for mixer in _by_turns(delta, attention, 4, sizes.depth)]
    return sizes.model("qwen3_next", layers, norm)


def lfm2(sizes: Sizes) -> ModelConfig:
    """LFM2 (Liquid AI 2025): two layers of gated short convolutions to one of attention, SwiGLU of 4 widths."""
    norm = Norm("rms", 1e-5)
    heads = sizes.heads
    attention = Attention(heads, heads, sizes.head_dim, rope=Rope(1_000_000.0), query_key_norm=QueryKeyNorm(norm))
    feed_forward = FeedForward(4 * sizes.width, "silu", gated=True)
    mixers = _by_turns(ShortConvolution(3), attention, 3, sizes.depth)
    return sizes.model("lfm2", [LayerSpec(mixer, feed_forward, norm) for mixer in mixers], norm)


def _by_turns(usual: Mixer, attention: Attention, every: int, depth: int) -> list[Mixer]:
    """Attention in every such layer; fewer layers than that end with the one of attention."""
    every = min(every, depth)
    return [usual if (index + 1) % every else attention for index in range(depth)]
