"""Named families at any depth: one dial from which the other sizes follow."""

from dataclasses import replace

from groundup.model.config import LearnedPositions, ModelConfig
from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope
from groundup.model.specs import Attention, FeedForward, Induction, LayerSpec, Norm, QueryKeyNorm

WIDTH_PER_LAYER = 64
# Fewer, wider heads are faster on CPU; more of them learn more (docs/log.md).
HEAD_DIM = {"gpt2": 64, "gpt3": 128, "llama": 128, "nanochat": 128, "palm": 128, "groundup": 64}
HEAD_DIM |= {"mamba": 64, "mamba2": 64}  # Mamba has no heads; its width is rounded as if it had
HEAD_DIM |= {"qwen3_next": 128, "lfm2": 64}
NGRAM_BUCKETS = 32_768
INDUCTION = Induction(lengths=(1, 2, 3, 5), places=2)


def build_config(
    preset: str, depth: int, vocab_size: int, context: int, width: int | None = None, head_dim: int | None = None
) -> ModelConfig:
    """The configuration of `preset` with `depth` layers.

    width: defaults to 64 per layer, rounded up to whole heads (nanochat's aspect ratio); head_dim: to the preset's own.
    Raises ValueError, naming the key, for sizes that do not fit each other.
    """
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, not {preset!r}")
    if depth < 1:
        raise ValueError(f"`depth` must be at least 1, not {depth}")
    head_dim = head_dim or HEAD_DIM[preset]
    width = width or -(-depth * WIDTH_PER_LAYER // head_dim) * head_dim
    if width % head_dim:
        raise ValueError(f"`width` ({width}) must be a multiple of `head_dim` ({head_dim})")
    return PRESETS[preset](depth, vocab_size, context, width, head_dim)


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


def _mamba(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
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


def _mamba2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """Mamba-2 (Dao and Gu 2024): the same with heads, one group of them, and 64 numbers per channel."""
    base = _mamba(depth, vocab_size, context, width, head_dim)
    norm = base.layers[0].norm
    layer = LayerSpec(Mamba2(2 * width // head_dim, head_dim, 64, groups=1, norm=norm), None, norm)
    return replace(base, family="mamba2", layers=(layer,) * depth)


def _qwen3_next(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
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


def _lfm2(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
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


PRESETS = {"gpt2": _gpt2, "gpt3": _gpt3, "llama": _llama, "nanochat": _nanochat, "palm": _palm, "groundup": _groundup}
PRESETS |= {"mamba": _mamba, "mamba2": _mamba2}
PRESETS |= {"qwen3_next": _qwen3_next, "lfm2": _lfm2}
