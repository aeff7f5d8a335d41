"""Presets with mixtures of experts. The networks that a token passes through are together as wide as LLaMA's."""

from groundup.model.config import ModelConfig
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, Experts, FeedForward, LatentAttention, LayerSpec, Norm, Router


def mixtral(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Mixtral (Jiang et al. 2024) with a tied head: LLaMA with two of eight experts, whose weights sum to 1."""
    norm = Norm("rms", 1e-5)
    heads = width // head_dim
    experts = Experts(FeedForward(_part_of_llama(width, 2), "silu", gated=True), Router(experts=8, chosen=2))
    attention = Attention(heads, _halved(heads), head_dim, rope=Rope(theta=1_000_000.0))
    return ModelConfig(
        family="mixtral",
        vocab_size=vocab_size,
        width=width,
        layers=(LayerSpec(attention, experts, norm),) * depth,
        final_norm=norm,
        tied_head=True,
        max_positions=context,
    )


def gpt_oss(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """gpt-oss (OpenAI 2025): sinks, biases, clamped gates, two of eight experts, windows in every other layer.

    Windows are a quarter of the context.
    """
    norm = Norm("rms", 1e-5)
    heads = width // head_dim
    expert = FeedForward(
        _part_of_llama(width, 2), "silu", gated=True, bias=True, sharpness=1.702, limit=7.0, up_offset=1.0
    )
    experts = Experts(expert, Router(experts=8, chosen=2, bias=True))

    def layer(window: int | None) -> LayerSpec:
        attention = Attention(
            heads,
            _halved(heads),
            head_dim,
            rope=Rope(theta=150_000.0),
            bias=("query", "key", "value", "output"),
            window=window,
            sinks=True,
        )
        return LayerSpec(attention, experts, norm)

    return ModelConfig(
        family="gpt_oss",
        vocab_size=vocab_size,
        width=width,
        layers=tuple(layer(None if index % 2 else max(1, context // 4)) for index in range(depth)),
        final_norm=norm,
        tied_head=False,
        max_positions=context,
    )


def deepseek_v3(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """DeepSeek-V3 (2024): latent attention, corrected sigmoid routers, a shared expert, the first layer dense.

    Four of sixteen experts, from two of four groups. Queries pass through half of the width, keys and values through a
    quarter; a third of each query and key has positions.
    """
    norm = Norm("rms", 1e-6)
    attention = LatentAttention(
        heads=width // head_dim,
        query_rank=max(1, width // 2),
        latent_rank=max(1, width // 4),
        plain_dim=head_dim,
        rotated_dim=head_dim // 2,
        value_dim=head_dim,
        rope=Rope(interleaved=True),
        norm=norm,
    )
    expert = FeedForward(_part_of_llama(width, 5), "silu", gated=True)
    router = Router(
        experts=16, chosen=4, score="sigmoid", correction=True, groups=4, chosen_groups=2, group_best=2, scale=2.5
    )
    dense = LayerSpec(attention, FeedForward(_part_of_llama(width, 1), "silu", gated=True), norm)
    sparse = LayerSpec(attention, Experts(expert, router, shared=expert), norm)
    return ModelConfig(
        family="deepseek_v3",
        vocab_size=vocab_size,
        width=width,
        layers=(dense, *(sparse,) * (depth - 1)) if depth > 1 else (sparse,),
        final_norm=norm,
        tied_head=False,
        max_positions=context,
    )


def _part_of_llama(width: int, parts: int) -> int:
    """One of equal parts of LLaMA's 8/3 width, rounded up."""
    step = 64 if parts == 1 else 32
    return -(-width * 8 // (3 * parts * step)) * step


def _halved(heads: int) -> int:
    """Key and value heads: one for two queries' where that works out."""
    return heads // 2 if heads % 2 == 0 else heads
