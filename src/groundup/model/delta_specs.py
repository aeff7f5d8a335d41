"""Mixers that keep a state of fixed size instead of every key, as data: the gated delta rule, short convolutions."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from groundup.model.specs import Activation

# Tokens that the delta rule takes at a time; twice as many solve larger systems, half as many take more steps.
CHUNK = 64


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention with the gated delta rule (Yang et al. 2024, "Gated Delta Networks").

    key_heads, value_heads: each key head, and the query that goes with it, serves as many value heads, one after the
        other.
    key_dim, value_dim: of each head.
    kernel: tokens that the convolution over queries, keys and values sees, the current one included.
    norm_eps: of the root-mean-square norm of each head's output.
    activation: after the convolution.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    norm_eps: float = 1e-6
    activation: "Activation" = "silu"
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("key_heads", "value_heads", "key_dim", "value_dim", "kernel"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` of a delta rule must be at least 1, not {getattr(self, name)}")
        if self.value_heads % self.key_heads:
            raise ValueError(f"`value_heads` ({self.value_heads}) must be a multiple of `key_heads` ({self.key_heads})")

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all values together."""
        return self.value_heads * self.value_dim

    def matmul_parameters(self, width: int) -> int:
        return width * (2 * self.keys + 3 * self.values + 2 * self.value_heads)

    def score_flops(self, context: int) -> int:
        """FLOPs of the chunked rule, forward and backward, for one token; they hardly depend on the context.

        Products within a chunk, the triangular solve (half a product, and one and a half on the way back), the state.
        """
        chunk, key, value = min(CHUNK, context), self.key_dim, self.value_dim
        within = 6 * chunk * (2 * key + value) + 4 * chunk * (key + value)
        return self.value_heads * (within + 18 * key * value)


@dataclass(frozen=True)
class ShortConvolution:
    """A gated convolution over the last few tokens (LFM2, Liquid AI 2025).

    kernel: tokens that it sees, the current one included.
    bias: convolution and projections have one.
    """

    kernel: int
    bias: bool = False
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kernel < 1:
            raise ValueError(f"a convolution must see at least one token, not {self.kernel}")

    def matmul_parameters(self, width: int) -> int:
        return 4 * width * width

    def score_flops(self, context: int) -> int:
        """None: the few products of the convolution itself are not counted, as those of norms are not."""
        return 0
