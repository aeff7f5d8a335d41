"""Named families at any depth: one dial from which the other sizes follow."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from groundup.model import presets_encoders, presets_experts, presets_recurrent
from groundup.model.config import EncoderDecoderConfig, LearnedPositions, ModelConfig
from groundup.model.rotary import Rope
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

# Depth, vocabulary, context, width, head size → configuration.
Preset = Callable[[int, int, int, int, int], ModelConfig | EncoderDecoderConfig]

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
    return PRESETS[preset](depth, vocab_size, context, width, head_dim)


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


def _gpt2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """GPT-2 (Radford et al. 2019): layer norm, learned positions, biases, GELU of 4 widths, a tied head."""
    norm = Norm("layer", 1e-5, bias=True)
    heads = width // head_dim
    layer = LayerSpec(
        Attention(heads, heads, head_dim, bias=("query", "key", "value", "output")),
        FeedForward(4 * width, "gelu_tanh", gated=False, bias=True),
        norm,
    )
    return ModelConfig(
        family="gpt2",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        final_norm=norm,
        tied_head=True,
        max_positions=context,
        learned_positions=LearnedPositions(context),
    )


def _gpt3(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """GPT-3 (Brown et al. 2020, section 2.1): GPT-2 in which every second layer sees a band of keys alone.

    The paper does not say how wide the band is; an eighth of the context is what GPT-Neo took (256 of 2,048).
    """
    base = _gpt2(depth, vocab_size, context, width, head_dim)
    dense = base.layers[0]
    banded = replace(dense, mixer=replace(dense.attention, window=max(1, context // 8)))
    return replace(base, family="gpt3", layers=tuple((dense, banded)[index % 2] for index in range(depth)))


def _llama(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """LLaMA (Touvron et al. 2023) with a tied head: RMS norm, rotary positions, SwiGLU of 8/3 width."""
    norm = Norm("rms", 1e-6)
    heads = width // head_dim
    layer = LayerSpec(
        Attention(heads, heads, head_dim, rope=Rope()),
        FeedForward(-(-width * 8 // 3 // 64) * 64, "silu", gated=True),
        norm,
    )
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        final_norm=norm,
        tied_head=True,
        max_positions=context,
    )


def _nanochat(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """nanochat (Karpathy 2025): norms without weight, query/key norm after rope, relu², untied head, softcap 15."""
    norm = Norm("rms_without_weight", 1e-6)
    heads = width // head_dim
    layer = LayerSpec(
        Attention(heads, heads, head_dim, rope=Rope(reversed=True), query_key_norm=QueryKeyNorm(norm, after_rope=True)),
        FeedForward(4 * width, "relu_squared", gated=False),
        norm,
    )
    return ModelConfig(
        family="nanochat",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        final_norm=norm,
        embedding_norm=norm,
        tied_head=False,
        logit_softcap=15.0,
        max_positions=context,
    )


def _palm(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """PaLM (Chowdhery et al. 2022): parallel layers, one key and value head, SwiGLU of 4 widths, scaled logits."""
    norm = Norm("layer", 1e-6)
    layer = LayerSpec(
        Attention(width // head_dim, 1, head_dim, rope=Rope(interleaved=True)),
        FeedForward(4 * width, "silu", gated=True),
        norm,
        placement="parallel",
    )
    return ModelConfig(
        family="palm",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        final_norm=norm,
        tied_head=True,
        max_positions=context,
        logit_scale=width**-0.5,
    )


def _groundup(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """nanochat's layers with head gates, value embeddings, mixed residuals, hashed bigrams and built-in induction."""
    base = _nanochat(depth, vocab_size, context, width, head_dim)
    return replace(
        base,
        family="groundup",
        layers=tuple(
            replace(layer, mixer=replace(layer.attention, head_gate=True), value_embedding=True)
            for layer in base.layers
        ),
        ngram_buckets=(NGRAM_BUCKETS,),
        induction=INDUCTION,
        residual_mix=True,
    )


def _gpt_neox(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """GPT-NeoX (Black et al. 2022): parallel layers with two norms, a quarter of each head rotated, an untied head."""
    base = _gpt2(depth, vocab_size, context, width, head_dim)
    rope = Rope(dims=head_dim // 4)
    return replace(
        base,
        family="gpt_neox",
        layers=tuple(
            replace(
                layer,
                mixer=replace(layer.attention, rope=rope),
                feed_forward=replace(layer.network, activation="gelu"),
                placement="parallel_two_norms",
            )
            for layer in base.layers
        ),
        tied_head=False,
        learned_positions=None,
    )


def _qwen3(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Qwen3 (2025): LLaMA with norms of each head's queries and keys, and half as many of the latter."""
    base = _llama(depth, vocab_size, context, width, head_dim)
    heads = width // head_dim
    kv_heads = heads // 2 if heads % 2 == 0 else heads
    norm = QueryKeyNorm(base.layers[0].norm)
    layers = _with_attention(base, kv_heads=kv_heads, query_key_norm=norm, rope=Rope(theta=1_000_000.0))
    return replace(base, family="qwen3", layers=layers)


def _gemma2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Gemma 2 (2024): norms before and after each part, softcaps, GELU, windows of half the context by turns."""
    base = _llama(depth, vocab_size, context, width, head_dim)
    norm = Norm("rms_plus_one", 1e-6)
    heads = width // head_dim
    capped = _with_attention(base, kv_heads=heads // 2 if heads % 2 == 0 else heads, scale=head_dim**-0.5, softcap=50.0)

    def layer(one: LayerSpec, window: int | None) -> LayerSpec:
        network = replace(one.network, activation="gelu_tanh")
        mixer = replace(one.attention, window=window)
        return replace(one, mixer=mixer, feed_forward=network, norm=norm, placement="sandwich")

    return replace(
        base,
        family="gemma2",
        layers=tuple(layer(one, None if index % 2 else max(1, context // 2)) for index, one in enumerate(capped)),
        final_norm=norm,
        embedding_scale=width**0.5,
        logit_softcap=30.0,
    )


def _olmo2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """OLMo 2 (2024): LLaMA that norms what each part gives, and all heads' queries and keys together."""
    base = _llama(depth, vocab_size, context, width, head_dim)
    norm = QueryKeyNorm(base.layers[0].norm, over="width")
    layers = _with_attention(base, query_key_norm=norm, rope=Rope(theta=500_000.0))
    return replace(
        base, family="olmo2", layers=tuple(replace(one, placement="output") for one in layers), tied_head=False
    )


def _with_attention(config: ModelConfig, **changes: Any) -> tuple[LayerSpec, ...]:
    """The layers with these fields of their attention changed."""
    return tuple(replace(layer, mixer=replace(layer.attention, **changes)) for layer in config.layers)


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
