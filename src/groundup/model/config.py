"""What a model is made of, as data: nested dataclasses, each validated where it is built.

A family (LLaMA, nanochat, …) is a `ModelConfig`, never a subclass. `layers` is written out once, one `LayerSpec` per
layer, so no code ever asks which layer it is.
"""

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "rms_without_weight"]
Activation = Literal["silu", "relu_squared"]


# Channels of a layer's input from which its gates are computed: of its value embedding (nanochat), of its attention
# heads (modded-nanogpt).
VALUE_GATE_WIDTH = 32
HEAD_GATE_WIDTH = 12


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm (Zhang and Sennrich 2019), with or without a learned weight."""

    kind: NormKind = "rms"
    eps: float = 1e-6


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021), pairing dimension i with i + head_dim / 2.

    reversed: rotate by the negative angle, as nanochat does.
    """

    theta: float = 10_000.0
    reversed: bool = False


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023): `heads` queries share `kv_heads` keys and values.

    query_key_norm: a norm without weight on each rotated query and key head (nanochat), or None.
    head_gate: each head's output is scaled by a gate that the layer's input opens or closes.
    """

    heads: int
    kv_heads: int
    head_dim: int
    query_key_norm: Norm | None = None
    head_gate: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"`heads` ({self.heads}) must be a multiple of `kv_heads` ({self.kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even for rotary positions, not {self.head_dim}")


@dataclass(frozen=True)
class FeedForward:
    """Position-wise network of inner width `width`; gated means SwiGLU-like (Shazeer 2020): act(gate) · up."""

    width: int
    activation: Activation
    gated: bool


@dataclass(frozen=True)
class Induction:
    """Built-in induction (`induction.py`): for each n of `lengths`, the last `places` places with the same n tokens."""

    lengths: tuple[int, ...]
    places: int

    def __post_init__(self) -> None:
        lengths = list(self.lengths)
        if not lengths or lengths[0] < 1 or lengths != sorted(set(lengths)):
            raise ValueError(f"the lengths of induction must be rising numbers from 1 on, not {lengths}")
        if self.places < 1:
            raise ValueError(f"the places of induction must be at least 1, not {self.places}")

    @property
    def terms(self) -> int:
        """How many followers each token has."""
        return len(self.lengths) * self.places


@dataclass(frozen=True)
class LayerSpec:
    """One pre-norm layer: x + attention(norm(x)), then x + feed_forward(norm(x)).

    value_embedding: each token adds a learned vector of its own, gated, to its attention values.
    """

    attention: Attention
    feed_forward: FeedForward
    norm: Norm
    value_embedding: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model.

    family: names the Hugging Face layout it is saved in (`formats/families/`); changes nothing in the forward pass.
    embedding_norm: a norm right after the token embedding, or None.
    tied_head: the output head is the embedding matrix.
    logit_softcap: logits become cap · tanh(logits / cap), or None.
    max_positions: longest sequence, in tokens, that the model is meant for.
    ngram_buckets: rows of the table that each pair of neighbouring tokens is hashed into, then each triple, …; every
        layer sees the sum of these rows.
    induction: what followed the last tokens where they stood before is offered to layers and head; or None.
    residual_mix: before each layer the residual is mixed, by learned scalars, with what entered the first layer.
    """

    family: str
    vocab_size: int
    width: int
    layers: tuple[LayerSpec, ...]
    rope: Rope
    final_norm: Norm
    embedding_norm: Norm | None
    tied_head: bool
    logit_softcap: float | None
    max_positions: int
    ngram_buckets: tuple[int, ...] = ()
    induction: Induction | None = None
    residual_mix: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a model needs at least one layer")
        if self.vocab_size < 1 or self.width < 1:
            raise ValueError(f"`vocab_size` ({self.vocab_size}) and `width` ({self.width}) must be positive")
        for name in ("ngram_buckets", "induction"):
            if getattr(self, name) and not self.residual_mix:
                raise ValueError(f"`{name}` needs `residual_mix`, which is where the layers take it in")
        if len(self.ngram_buckets) > 2:
            raise ValueError(f"`ngram_buckets` knows pairs and triples, not {len(self.ngram_buckets)} sizes")

    @property
    def mixed_terms(self) -> int:
        """What each layer's residual is mixed from: itself, the first layer's input, n-grams, followers."""
        return 2 + bool(self.ngram_buckets) + (self.induction is not None)

    def matmul_parameters(self) -> int:
        """Parameters that take part in matrix products for each token: layers and head, not the embedding look-up."""
        total = self.vocab_size * self.width
        total += 0 if self.induction is None else self.induction.terms * self.width
        for layer in self.layers:
            attention, feed_forward = layer.attention, layer.feed_forward
            total += 2 * self.width * attention.head_dim * (attention.heads + attention.kv_heads)
            total += (3 if feed_forward.gated else 2) * self.width * feed_forward.width
            total += attention.kv_heads * VALUE_GATE_WIDTH if layer.value_embedding else 0
            total += attention.heads * HEAD_GATE_WIDTH if attention.head_gate else 0
        return total

    def parameters(self) -> int:
        """All parameters, each counted once."""
        tables = sum(self.ngram_buckets) * self.width + (0 if self.tied_head else self.vocab_size * self.width)
        scalars = len(self.layers) * self.mixed_terms if self.residual_mix else 0
        if self.induction is not None:
            tables += self.vocab_size * self.width
            scalars += (len(self.layers) + 1) * (len(self.induction.lengths) + 1) * self.induction.terms
        for layer in self.layers:
            if layer.value_embedding:
                tables += self.vocab_size * layer.attention.kv_heads * layer.attention.head_dim
        norms = [norm for layer in self.layers for norm in (layer.norm, layer.norm)] + [self.final_norm]
        vectors = self.width * sum(norm.kind == "rms" for norm in norms)
        return self.matmul_parameters() + vectors + tables + scalars

    def attention_flops_per_token(self, context: int) -> int:
        """FLOPs of scores and weighted sums, forward and backward, for one token that sees `context` keys."""
        return sum(12 * layer.attention.heads * layer.attention.head_dim * context for layer in self.layers)

    def training_flops_per_token(self, context: int) -> int:
        """FLOPs of one training token: 6 per matmul parameter, plus attention over the full context.

        Attention is counted without halving for causality (PaLM, appendix B; the convention of nanochat).
        """
        return 6 * self.matmul_parameters() + self.attention_flops_per_token(context)
