"""Presets with mixtures of experts. The networks that a token passes through are together as wide as LLaMA's."""

from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope
from groundup.model.sizes import Sizes
from groundup.model.specs import Attention, Experts, FeedForward, LatentAttention, LayerSpec, Norm, Router


def mixtral(sizes: Sizes) -> ModelConfig:
    """Mixtral (Jiang et al. 2024) with a tied head: LLaMA with two of eight experts, whose weights sum to 1."""
    norm = Norm("rms", 1e-5)
    experts = Experts(FeedForward(sizes.gated(parts=2), "silu", gated=True), Router(experts=8, chosen=2))
    attention = Attention(sizes.heads, sizes.half_heads, sizes.head_dim, rope=Rope(theta=1_000_000.0))
    return sizes.model("mixtral", LayerSpec(attention, experts, norm), norm)


def gpt_oss(sizes: Sizes) -> ModelConfig:
    """gpt-oss (OpenAI 2025): sinks, biases, clamped gates, two of eight experts, windows in every other layer.

    Windows are a quarter of the context.
    """
    norm = Norm("rms", 1e-5)
    expert = FeedForward(sizes.gated(parts=2), "silu", gated=True, bias=True, sharpness=1.702, limit=7.0, up_offset=1.0)
    experts = Experts(expert, Router(experts=8, chosen=2, bias=True))

    def layer(window: int | None) -> LayerSpec:
        """gpt-oss: biases and sinks. window: in tokens, None for all."""
        attention = Attention(
            sizes.heads,
            sizes.half_heads,
            sizes.head_dim,
            rope=Rope(theta=150_000.0),
            bias=("query", "key", "value", "output"),
            window=window,
            sinks=True,
        )
        return LayerSpec(attention, experts, norm)

    layers = [layer(None if index % 2 else sizes.part_of_context(4)) for index in range(sizes.depth)]
    return sizes.model("gpt_oss", layers, norm, tied_head=False)


def deepseek_v3(sizes: Sizes) -> ModelConfig:
    """DeepSeek-V3 (2024): latent attention, corrected sigmoid routers, a shared expert, the first layer dense.

    Four of sixteen experts, from two of four groups. Queries pass through half of the width, keys and values through a
    quarter; a third of each query and key has positions.
    """
    norm = Norm("rms", 1e-6)
    attention = LatentAttention(
        heads=sizes.heads,
        query_rank=max(1, sizes.width // 2),
        latent_rank=max(1, sizes.width // 4),
        plain_dim=sizes.head_dim,
        rotated_dim=sizes.head_dim // 2,
        value_dim=sizes.head_dim,
        rope=Rope(interleaved=True),
        norm=norm,
    )
    expert = FeedForward(sizes.gated(parts=5), "silu", gated=True)
    router = Router(
        experts=16, chosen=4, score="sigmoid", correction=True, groups=4, chosen_groups=2, group_best=2, scale=2.5
    )
    dense = LayerSpec(attention, FeedForward(sizes.gated(), "silu", gated=True), norm)
    sparse = LayerSpec(attention, Experts(expert, router, shared=expert), norm)
    layers = (dense, *(sparse,) * (sizes.depth - 1)) if sizes.depth > 1 else (sparse,)
    return sizes.model("deepseek_v3", layers, norm, tied_head=False)
