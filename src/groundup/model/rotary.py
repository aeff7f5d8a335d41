"""Rotary positions as data: the base, what is rotated, and every published way to stretch them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """The base grows with the sequence once it is longer than `original` positions (NTK-aware, dynamic)."""

    factor: float
    original: int


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies divided by `factor`, fast ones kept, a linear blend between (Llama 3.1)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): dimensions that turn fewer than `beta_slow` times in `original` positions are
    interpolated, those that turn more than `beta_fast` times kept; queries and keys grow by `attention_factor`.

    truncate: the blend begins and ends at whole dimensions.
    """

    factor: float
    original: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): one factor per frequency, `short` up to `original` positions, `long` beyond."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention_factor: float


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021).

    dims: leading dimensions of each head that are rotated, or None for all.
    interleaved: pairs are (2i, 2i + 1) as in the paper; otherwise (i, i + dims / 2).
    reversed: rotate by the negative angle, as nanochat does.
    """

    theta: float = 10_000.0
    dims: int | None = None
    interleaved: bool = False
    reversed: bool = False
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.dims is not None and (self.dims % 2 or self.dims < 2):
            raise ValueError(f"the rotated dimensions of a head must be even and positive, not {self.dims}")
        if not self.theta > 0:
            raise ValueError(f"`rope_theta` must be positive, not {self.theta}")
