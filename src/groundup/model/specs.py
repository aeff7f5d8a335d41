"""The parts of a layer, as data: nested dataclasses, each validated where it is built.

Every part counts the parameters that take part in its matrix products, from which FLOPs follow.
"""

import math
from dataclasses import dataclass
from typing import Literal

from groundup.model.delta_specs import GatedDeltaNet, ShortConvolution
from groundup.model.recurrent_specs import Mamba, Mamba2
from groundup.model.rotary import Rope, YarnScaling

NormKind = Literal["rms", "rms_plus_one", "rms_without_weight", "layer", "layer_without_weight"]
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared", "tanh"]
# Where a layer norms, for a sublayer f: x + f(n(x)); n(x + f(x)); x + n'(f(n(x))); x + n(f(x)); and, with attention and
# feed-forward side by side, x + a(n(x)) + f(n(x)); x + a(n(x)) + f(n'(x)).
Placement = Literal["pre", "post", "sandwich", "output", "parallel", "parallel_two_norms"]
Projection = Literal["query", "key", "value", "output"]

# Channels of a layer's input from which its gates are computed: of its value embedding (nanochat), of its attention
# heads (modded-nanogpt).
VALUE_GATE_WIDTH = 32
HEAD_GATE_WIDTH = 12


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016).

    kind: `rms_plus_one` multiplies by (1 + weight) before it narrows the type (Gemma); the others have a plain weight
        or none.
    bias: only layer norms with a weight can have one.
    """

    kind: NormKind = "rms"
    eps: float = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        if self.bias and self.kind != "layer":
            raise ValueError(f"a norm of kind {self.kind!r} has no bias")
        if not self.eps > 0:
            raise ValueError(f"the epsilon of a norm must be positive, not {self.eps}")

    @property
    def has_weight(self) -> bool:
        return "without" not in self.kind


@dataclass(frozen=True)
class QueryKeyNorm:
    """A norm of the queries and of the keys.

    over: each head by itself with one weight for all (`head`) or with a weight of its own (`each_head`, Cohere), or
        all heads together (`width`, OLMo 2).
    after_rope: whether they are rotated first (nanochat).
    """

    norm: Norm
    over: Literal["head", "each_head", "width"] = "head"
    after_rope: bool = False

    def __post_init__(self) -> None:
        if self.after_rope and self.over == "width":
            raise ValueError("a norm over the full width comes before the rotation, which is of each head by itself")


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention (Ainslie et al. 2023): `heads` queries share `kv_heads` keys and values.

    rope: rotary positions, or None.
    bias: the projections that have one.
    scale: of the scores; None means head_dim^-1/2.
    softcap: scores become cap · tanh(score / cap) (Gemma 2).
    window: keys that a query sees, itself included (Mistral); with `causal` off, keys on each side.
    sinks: each head has a learned score for seeing nothing (gpt-oss).
    alibi: factor on the linear distance bias of Press et al. 2022, or None.
    clip: queries and keys, once normed over the width, and values are clamped to ± this (OLMoE).
    head_gate: each head's output is scaled by a gate that the layer's input opens or closes.
    output_gate: so is each number of it (Qwen3-Next).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    bias: tuple[Projection, ...] = ()
    query_key_norm: QueryKeyNorm | None = None
    scale: float | None = None
    softcap: float | None = None
    window: int | None = None
    causal: bool = True
    sinks: bool = False
    alibi: float | None = None
    clip: float | None = None
    head_gate: bool = False
    output_gate: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"`heads` ({self.heads}) must be a multiple of `kv_heads` ({self.kv_heads})")
        if self.rope is not None and self.rope.dims is None and self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even for rotary positions, not {self.head_dim}")
        if self.rope is not None and (self.rope.dims or 0) > self.head_dim:
            raise ValueError(f"{self.rope.dims} rotated dimensions do not fit into a `head_dim` of {self.head_dim}")
        if self.sinks and self.alibi is not None:
            raise ValueError("sinks and the distance bias cannot be had together: no rule says how far a sink is")
        if self.window is not None and self.window < 1:
            raise ValueError(f"an attention window must be at least 1, not {self.window}")

    def matmul_parameters(self, width: int) -> int:
        """Numbers in its matrices, for a model of this width: each is one product for each token."""
        gate = self.heads * HEAD_GATE_WIDTH if self.head_gate else 0
        gate += width * self.heads * self.head_dim if self.output_gate else 0
        return 2 * width * self.head_dim * (self.heads + self.kv_heads) + gate

    def score_flops(self, context: int) -> int:
        """FLOPs of scores and weighted sums, forward and backward, for one token that sees `context` keys."""
        return 12 * self.heads * self.head_dim * context


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2 2024): keys and values are made of one small vector for each token.

    query_rank: width that queries pass through, or None; latent_rank: that of keys and values.
    plain_dim, rotated_dim: of each query and key, the part without and with positions; all heads share one rotated key.
    norm: of what passes through the ranks.
    bias: the maps that lead into the ranks, and the output, have one.
    yarn_mscale: with YaRN the scores grow by (1 + 0.1 · yarn_mscale · ln factor)²; 0 leaves them.
    """

    heads: int
    query_rank: int | None
    latent_rank: int
    plain_dim: int
    rotated_dim: int
    value_dim: int
    rope: Rope
    norm: Norm
    bias: bool = False
    yarn_mscale: float = 0.0

    def __post_init__(self) -> None:
        if self.rotated_dim % 2:
            raise ValueError(f"the rotated part of a head must be even, not {self.rotated_dim}")

    @property
    def kv_heads(self) -> int:
        """Each head has keys and values of its own."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """The dimensions that rotary positions are for."""
        return self.rotated_dim

    @property
    def causal(self) -> bool:
        return True

    @property
    def scored(self) -> Attention:
        """How the queries and keys that come out are compared: as those of plain attention."""
        dim = self.plain_dim + self.rotated_dim
        factor = self.rope.scaling.factor if isinstance(self.rope.scaling, YarnScaling) else 1.0
        growth = 1 + 0.1 * self.yarn_mscale * math.log(factor) if factor > 1 else 1.0
        return Attention(self.heads, self.heads, dim, scale=dim**-0.5 * growth**2)

    def matmul_parameters(self, width: int) -> int:
        query, latent = self.query_rank, self.latent_rank
        queries = self.heads * (self.plain_dim + self.rotated_dim)
        total = width * queries if query is None else query * (width + queries)
        total += width * (latent + self.rotated_dim) + latent * self.heads * (self.plain_dim + self.value_dim)
        return total + self.heads * self.value_dim * width

    def score_flops(self, context: int) -> int:
        """FLOPs of scores and weighted sums, forward and backward, for one token that sees `context` keys."""
        return 6 * self.heads * (self.plain_dim + self.rotated_dim + self.value_dim) * context


@dataclass(frozen=True)
class FeedForward:
    """Position-wise network of inner width `width`; gated means SwiGLU-like (Shazeer 2020): act(gate) · up.

    sharpness: the activation is act(a · x) / a with this a.
    limit: gates are clamped to at most this and `up` to ± this before anything else (gpt-oss), or None.
    up_offset: added to `up` (1 in gpt-oss).
    """

    width: int
    activation: Activation
    gated: bool
    bias: bool = False
    sharpness: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0

    def __post_init__(self) -> None:
        if not self.gated and (self.limit is not None or self.up_offset):
            raise ValueError("`limit` and `up_offset` belong to feed-forward networks with a gate")

    def matmul_parameters(self, width: int) -> int:
        return (3 if self.gated else 2) * width * self.width


@dataclass(frozen=True)
class Router:
    """How a token chooses experts and weighs what they answer, from one linear score for each of `experts`.

    chosen: experts per token.
    score: softmax over all experts, or the sigmoid of each (DeepSeek-V3).
    normalised: the weights of the chosen experts are divided by their sum. With softmax these are then the softmax of
        the chosen scores alone (Mixtral, gpt-oss).
    bias: the scores have one.
    correction: a number for each expert enters the choice, not the weights, and is nudged while training until all
        experts have the same load (DeepSeek-V3).
    groups, chosen_groups, group_best: the experts form equal groups, of which a token takes those with the highest sum
        of their `group_best` best experts (DeepSeek: the best one in V2, two in V3).
    scale: factor on the weights.
    capacity: tokens of one text that an expert takes, first come, first served; the others pass the experts by
        (Switch). None: all.
    least_sum: added to the sum that the weights are divided by; keeps those of a token finite whose every score is zero
        after rounding.
    """

    experts: int
    chosen: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalised: bool = True
    bias: bool = False
    correction: bool = False
    groups: int = 1
    chosen_groups: int = 1
    group_best: int = 2
    scale: float = 1.0
    capacity: int | None = None
    least_sum: float = 1e-20

    def __post_init__(self) -> None:
        if self.groups < 1 or self.experts % self.groups:
            raise ValueError(f"{self.experts} experts do not form {self.groups} equal groups")
        if not 1 <= self.chosen_groups <= self.groups:
            raise ValueError(f"{self.chosen_groups} groups of experts cannot be chosen from {self.groups}")
        eligible = self.experts // self.groups * self.chosen_groups
        if not 1 <= self.chosen <= eligible:
            raise ValueError(f"{self.chosen} experts cannot be chosen from {eligible}")
        if self.chosen_groups < self.groups and not 1 <= self.group_best <= self.experts // self.groups:
            raise ValueError(f"a group of {self.experts // self.groups} experts has no {self.group_best} best ones")
        if self.capacity is not None and (self.capacity < 1 or self.chosen > 1):
            raise ValueError("the capacity of an expert must be at least 1, and is for one expert per token")


@dataclass(frozen=True)
class Experts:
    """Feed-forward networks of which each token passes through a few (Shazeer et al. 2017).

    expert: the shape of each.
    shared: a network beside them that every token passes through, or None.
    shared_gate: its output is scaled by the sigmoid of one linear score of the token (Qwen2-MoE).
    """

    expert: FeedForward
    router: Router
    shared: FeedForward | None = None
    shared_gate: bool = False

    def __post_init__(self) -> None:
        if self.shared_gate and self.shared is None:
            raise ValueError("`shared_gate` needs a shared network, whose output it scales")

    def matmul_parameters(self, width: int) -> int:
        """Of what one token passes through: the router, its chosen experts, the shared network."""
        shared = 0 if self.shared is None else self.shared.matmul_parameters(width)
        gate = width if self.shared_gate else 0
        chosen = self.router.chosen * self.expert.matmul_parameters(width)
        return self.router.experts * width + chosen + shared + gate


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


Mixer = Attention | LatentAttention | Mamba | Mamba2 | GatedDeltaNet | ShortConvolution


@dataclass(frozen=True)
class LayerSpec:
    """One layer: a mixer of positions, then (or beside it) a feed-forward network, with norms where `placement` says.

    feed_forward: None for a layer that is a mixer alone (Mamba).
    cross: attention to the output of an encoder, between the two (Vaswani et al. 2017, section 3.1), or None.
    mixer_norm: False leaves out the norm before the mixer (ModernBERT's first layer, whose input is normed already).
    value_embedding: each token adds a learned vector of its own, gated, to its attention values.
    """

    mixer: Mixer
    feed_forward: FeedForward | Experts | None
    norm: Norm
    placement: Placement = "pre"
    cross: Attention | None = None
    mixer_norm: bool = True
    value_embedding: bool = False

    def __post_init__(self) -> None:
        if self.value_embedding and not isinstance(self.mixer, Attention):
            raise ValueError("`value_embedding` needs plain attention, to whose values it is added")
        if self.cross is not None:
            if self.placement not in ("pre", "post"):
                raise ValueError(f"no rule says where cross-attention stands with placement {self.placement!r}")
            if self.cross.causal or self.cross.window is not None or self.cross.rope is not None:
                raise ValueError("cross-attention sees all of the encoder's output: no order, window or rotation")
            if self.cross.head_gate or self.cross.output_gate or self.cross.sinks or self.cross.alibi is not None:
                raise ValueError("cross-attention has neither gates nor sinks nor a distance bias")
        if self.feed_forward is None and self.placement != "pre":
            raise ValueError(f"a layer of a mixer alone has its norm before it, not {self.placement!r}")

    @property
    def attention(self) -> Attention:
        """The mixer of a family in which it is always plain attention."""
        assert isinstance(self.mixer, Attention)
        return self.mixer

    @property
    def network(self) -> FeedForward:
        """The feed-forward network, or the shape of each where there are experts."""
        network = self.feed_forward.expert if isinstance(self.feed_forward, Experts) else self.feed_forward
        assert network is not None
        return network

    def matmul_parameters(self, width: int) -> int:
        """Parameters that take part in matrix products for each token; of experts only those that it chooses."""
        parts = (part for part in (self.mixer, self.cross, self.feed_forward) if part is not None)
        values = self.attention.kv_heads * VALUE_GATE_WIDTH if self.value_embedding else 0
        return values + sum(part.matmul_parameters(width) for part in parts)
