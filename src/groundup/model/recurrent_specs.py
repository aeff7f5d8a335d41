"""Mixers that carry a state of fixed size from token to token, as data: the state-space models Mamba and Mamba-2."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from groundup.model.specs import Activation, Norm

# Tokens that Mamba-2 takes as one matrix. Measured at context 512: docs/log.md.
SSD_CHUNK = 64


@dataclass(frozen=True)
class Mamba:
    """A selective state space (Gu and Dao 2023): each channel has a few numbers that decay and take in what comes.

    channels: usually twice the model's width; state: numbers that each of them has.
    rank: width that the step sizes pass through.
    kernel, activation: of the convolution before, and what follows it.
    bias: the projections in and out have one; convolution_bias: the convolution has one.
    norm: of steps, inputs and outputs of the state, each by themselves (Jamba), or None.
    """

    channels: int
    state: int
    rank: int
    kernel: int = 4
    activation: "Activation" = "silu"
    bias: bool = False
    convolution_bias: bool = True
    norm: "Norm | None" = None
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive(self, "channels", "state", "rank", "kernel")

    def matmul_parameters(self, width: int) -> int:
        return self.channels * (3 * width + 2 * self.rank + 2 * self.state)

    def score_flops(self, context: int) -> int:
        """None: a scan has no matrix products, and what it does have is as little as that of norms."""
        return 0


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2 (Dao and Gu 2024): all numbers of a head decay at one rate, so that matrix products compute the scan.

    heads, head_dim: their product is usually twice the model's width; state: numbers that each channel has.
    groups: of heads that share what goes into their states and what is read from them.
    kernel, activation, bias, convolution_bias: as in `Mamba`.
    norm: of the gated output, in each group by itself.
    step_limits: step sizes are kept within these.
    """

    heads: int
    head_dim: int
    state: int
    groups: int
    norm: "Norm"
    kernel: int = 4
    activation: "Activation" = "silu"
    bias: bool = False
    convolution_bias: bool = True
    step_limits: tuple[float, float] = (0.0, math.inf)
    causal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive(self, "heads", "head_dim", "state", "groups", "kernel")
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads do not form {self.groups} equal groups")
        low, high = self.step_limits
        if not 0 <= low <= high:
            raise ValueError(f"step sizes cannot lie between {low} and {high}")
        if self.norm.kind != "rms":
            raise ValueError(f"the gated norm of Mamba-2 is of kind 'rms', not {self.norm.kind!r}")

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Channels of the convolution: the heads', and what goes into and is read from the states of each group."""
        return self.channels + 2 * self.groups * self.state

    def matmul_parameters(self, width: int) -> int:
        return width * (2 * self.channels + self.convolved + self.heads)

    def score_flops(self, context: int) -> int:
        """FLOPs of the block form, forward and backward, for one token: within its chunk, and to and from states."""
        within = min(SSD_CHUNK, context) * (self.groups * self.state + self.channels)
        return 6 * (within + (2 * self.state * self.channels if context > SSD_CHUNK else 0))


def _check_positive(spec: Mamba | Mamba2, *names: str) -> None:
    for name in names:
        if getattr(spec, name) < 1:
            raise ValueError(f"`{name}` of a state-space layer must be at least 1, not {getattr(spec, name)}")
