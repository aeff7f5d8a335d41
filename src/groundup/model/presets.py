"""Named families at any depth: one dial from which the other sizes follow."""

from dataclasses import replace

from groundup.model.config import Attention, FeedForward, Induction, LayerSpec, ModelConfig, Norm, Rope

WIDTH_PER_LAYER = 64
# Fewer, wider heads are faster on CPU; more of them learn more (docs/log.md).
HEAD_DIM = {"llama": 128, "nanochat": 128, "groundup": 64}
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


def _llama(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """LLaMA (Touvron et al. 2023) with a tied head: RMS norm, rotary positions, SwiGLU of 8/3 width."""
    norm = Norm("rms", 1e-6)
    heads = width // head_dim
    layer = LayerSpec(
        Attention(heads, heads, head_dim),
        FeedForward(-(-width * 8 // 3 // 64) * 64, "silu", gated=True),
        norm,
    )
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        rope=Rope(),
        final_norm=norm,
        embedding_norm=None,
        tied_head=True,
        logit_softcap=None,
        max_positions=context,
    )


def _nanochat(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """nanochat (Karpathy 2025): norms without weight, query/key norm after rope, relu², untied head, softcap 15."""
    norm = Norm("rms_without_weight", 1e-6)
    heads = width // head_dim
    layer = LayerSpec(
        Attention(heads, heads, head_dim, query_key_norm=norm),
        FeedForward(4 * width, "relu_squared", gated=False),
        norm,
    )
    return ModelConfig(
        family="nanochat",
        vocab_size=vocab_size,
        width=width,
        layers=(layer,) * depth,
        rope=Rope(reversed=True),
        final_norm=norm,
        embedding_norm=norm,
        tied_head=False,
        logit_softcap=15.0,
        max_positions=context,
    )


def _groundup(depth: int, vocab_size: int, context: int, width: int, head_dim: int) -> ModelConfig:
    """nanochat's layers with head gates, value embeddings, mixed residuals, hashed bigrams and built-in induction."""
    base = _nanochat(depth, vocab_size, context, width, head_dim)
    return replace(
        base,
        family="groundup",
        layers=tuple(
            replace(layer, attention=replace(layer.attention, head_gate=True), value_embedding=True)
            for layer in base.layers
        ),
        ngram_buckets=(NGRAM_BUCKETS,),
        induction=INDUCTION,
        residual_mix=True,
    )


PRESETS = {"llama": _llama, "nanochat": _nanochat, "groundup": _groundup}
