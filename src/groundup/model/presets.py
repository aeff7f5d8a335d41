"""Named families at any depth: one dial from which the other sizes follow."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from groundup.model import presets_encoders, presets_experts, presets_recurrent
from groundup.model.config import EncoderDecoderConfig, LearnedPositions, ModelConfig
from groundup.model.rotary import Rope
from groundup.model.sizes import Sizes
from groundup.model.specs import (
    Attention,
    Experts,
    FeedForward,
    Induction,
    LatentAttention,
    LayerSpec,
    Norm,
    QueryKeyNorm,
)

Preset = Callable[[Sizes], ModelConfig | EncoderDecoderConfig]

WIDTH_PER_LAYER = 64
# Fewer, wider heads are faster on CPU; more of them learn more (docs/log.md).
HEAD_DIM = {"gpt2": 64, "gpt_neox": 64, "gpt_oss": 64, "groundup": 64, "bert": 64, "t5": 64, "deepseek_v3": 64}
# Mamba has no heads; its width is rounded as if it had.
HEAD_DIM |= {"mamba": 64, "mamba2": 64, "lfm2": 64, "modernbert": 64}
USUAL_HEAD_DIM = 128
NGRAM_BUCKETS = 32_768
INDUCTION = Induction(lengths=(1, 2, 3, 5), places=2)


def build_config(
    preset: str, depth: int, vocab_size: int, context: int, width: int | None = None, head_dim: int | None = None
) -> ModelConfig | EncoderDecoderConfig:
    """The configuration of `preset` with `depth` layers.

    width: defaults to 64 per layer, rounded up to whole heads (nanochat's aspect ratio); head_dim: to the preset's own.
    Raises ValueError, naming the key, for sizes that do not fit each other.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, not {preset!r}")
    if depth < 1:
        raise ValueError(f"`depth` must be at least 1, not {depth}")
    head_dim = head_dim or HEAD_DIM.get(preset, USUAL_HEAD_DIM)
    width = width or -(-depth * WIDTH_PER_LAYER // head_dim) * head_dim
    if width % head_dim:
        raise ValueError(f"`width` ({width}) must be a multiple of `head_dim` ({head_dim})")
    return PRESETS[preset](Sizes(depth, vocab_size, context, width, head_dim))


def presets_by_kind() -> dict[str, list[str]]:
    """The names of all presets, by the kind of model that they make."""
    kinds: dict[str, list[str]] = {}
    for name in PRESETS:
        kinds.setdefault(_kind(build_config(name, depth=2, vocab_size=1, context=4)), []).append(name)
    return kinds


def _kind(config: ModelConfig | EncoderDecoderConfig) -> str:
    if isinstance(config, EncoderDecoderConfig):
        return "encoder-decoders"
    if not config.causal:
        return "encoders"
    if any(isinstance(layer.feed_forward, Experts) for layer in config.layers):
        return "mixtures of experts"
    attends = all(isinstance(layer.mixer, Attention | LatentAttention) for layer in config.layers)
    return "decoders" if attends else "decoders with recurrent layers"


def _gpt2(sizes: Sizes) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): layer norm, learned positions, biases, GELU of 4 widths, a tied head."""
    norm = Norm("layer", 1e-5, bias=True)
    attention = Attention(sizes.heads, sizes.heads, sizes.head_dim, bias=("query", "key", "value", "output"))
    layer = LayerSpec(attention, FeedForward(4 * sizes.width, "gelu_tanh", gated=False, bias=True), norm)
    return sizes.model("gpt2", layer, norm, learned_positions=LearnedPositions(sizes.context))


def _gpt3(sizes: Sizes) -> ModelConfig:
    """GPT-3 (Brown et al. 2020, section 2.1): GPT-2 in which every second layer sees a band of keys alone.

    The paper does not say how wide the band is; an eighth of the context is what GPT-Neo took (256 of 2,048).
    """
    base = _gpt2(sizes)
    dense = base.layers[0]
    banded = replace(dense, mixer=replace(dense.attention, window=sizes.part_of_context(8)))
    return replace(base, family="gpt3", layers=tuple((dense, banded)[index % 2] for index in range(sizes.depth)))


def _gpt_neox(sizes: Sizes) -> ModelConfig:
    """GPT-NeoX (Black et al. 2022): parallel layers with two norms, a quarter of each head rotated, an untied head."""
    base = _gpt2(sizes)
    layer = replace(
        base.layers[0],
        mixer=replace(base.layers[0].attention, rope=Rope(dims=sizes.head_dim // 4)),
        feed_forward=replace(base.layers[0].network, activation="gelu"),
        placement="parallel_two_norms",
    )
    return sizes.model("gpt_neox", layer, base.final_norm, tied_head=False)


def _palm(sizes: Sizes) -> ModelConfig:
    """PaLM (Chowdhery et al. 2022): parallel layers, one key and value head, SwiGLU of 4 widths, scaled logits."""
    norm = Norm("layer", 1e-6)
    layer = LayerSpec(
        Attention(sizes.heads, 1, sizes.head_dim, rope=Rope(interleaved=True)),
        FeedForward(4 * sizes.width, "silu", gated=True),
        norm,
        placement="parallel",
    )
    return sizes.model("palm", layer, norm, logit_scale=sizes.width**-0.5)


def _llama(sizes: Sizes) -> ModelConfig:
    """LLaMA (Touvron et al. 2023) with a tied head: RMS norm, rotary positions, SwiGLU of 8/3 width."""
    norm = Norm("rms", 1e-6)
    attention = Attention(sizes.heads, sizes.heads, sizes.head_dim, rope=Rope())
    return sizes.model("llama", LayerSpec(attention, FeedForward(sizes.gated(), "silu", gated=True), norm), norm)


def _qwen3(sizes: Sizes) -> ModelConfig:
    """Qwen3 (2025): LLaMA with norms of each head's queries and keys, and half as many of the latter."""
    base = _llama(sizes)
    norm = QueryKeyNorm(base.layers[0].norm)
    layer = _with_attention(base, kv_heads=sizes.half_heads, query_key_norm=norm, rope=Rope(theta=1_000_000.0))
    return sizes.model("qwen3", layer, base.final_norm)


def _olmo2(sizes: Sizes) -> ModelConfig:
    """OLMo 2 (2024): LLaMA that norms what each part gives, and all heads' queries and keys together."""
    base = _llama(sizes)
    norm = QueryKeyNorm(base.layers[0].norm, over="width")
    layer = _with_attention(base, query_key_norm=norm, rope=Rope(theta=500_000.0))
    return sizes.model("olmo2", replace(layer, placement="output"), base.final_norm, tied_head=False)


def _gemma2(sizes: Sizes) -> ModelConfig:
    """Gemma 2 (2024): norms before and after each part, softcaps, GELU, windows of half the context by turns."""
    norm = Norm("rms_plus_one", 1e-6)
    network = FeedForward(sizes.gated(), "gelu_tanh", gated=True)

    def layer(window: int | None) -> LayerSpec:
        """Gemma 2: norms before and behind each part; window in tokens, None for all."""
        attention = Attention(
            sizes.heads,
            sizes.half_heads,
            sizes.head_dim,
            rope=Rope(),
            scale=sizes.head_dim**-0.5,
            softcap=50.0,
            window=window,
        )
        return LayerSpec(attention, network, norm, placement="sandwich")

    layers = [layer(None if index % 2 else sizes.part_of_context(2)) for index in range(sizes.depth)]
    return sizes.model("gemma2", layers, norm, embedding_scale=sizes.width**0.5, logit_softcap=30.0)


def _nanochat(sizes: Sizes) -> ModelConfig:
    """nanochat (Karpathy 2025): norms without weight, query/key norm after rope, relu², untied head, softcap 15."""
    norm = Norm("rms_without_weight", 1e-6)
    query_key_norm = QueryKeyNorm(norm, after_rope=True)
    rope = Rope(reversed=True)
    attention = Attention(sizes.heads, sizes.heads, sizes.head_dim, rope=rope, query_key_norm=query_key_norm)
    layer = LayerSpec(attention, FeedForward(4 * sizes.width, "relu_squared", gated=False), norm)
    return sizes.model("nanochat", layer, norm, embedding_norm=norm, tied_head=False, logit_softcap=15.0)


def _groundup(sizes: Sizes) -> ModelConfig:
    """nanochat's layers with head gates, value embeddings, mixed residuals, hashed bigrams and built-in induction."""
    base = _nanochat(sizes)
    layer = replace(_with_attention(base, head_gate=True), value_embedding=True)
    return replace(
        base,
        family="groundup",
        layers=(layer,) * sizes.depth,
        ngram_buckets=(NGRAM_BUCKETS,),
        induction=INDUCTION,
        residual_mix=True,
    )


def _with_attention(config: ModelConfig, **changes: Any) -> LayerSpec:
    """The first layer with these fields of its attention changed."""
    return replace(config.layers[0], mixer=replace(config.layers[0].attention, **changes))


PRESETS: dict[str, Preset] = {
    "groundup": _groundup,
    "nanochat": _nanochat,
    "llama": _llama,
    "qwen3": _qwen3,
    "olmo2": _olmo2,
    "gemma2": _gemma2,
    "gpt2": _gpt2,
    "gpt3": _gpt3,
    "gpt_neox": _gpt_neox,
    "palm": _palm,
    "mixtral": presets_experts.mixtral,
    "deepseek_v3": presets_experts.deepseek_v3,
    "gpt_oss": presets_experts.gpt_oss,
    "mamba": presets_recurrent.mamba,
    "mamba2": presets_recurrent.mamba2,
    "qwen3_next": presets_recurrent.qwen3_next,
    "lfm2": presets_recurrent.lfm2,
    "bert": presets_encoders.bert,
    "modernbert": presets_encoders.modernbert,
    "t5": presets_encoders.t5,
}
