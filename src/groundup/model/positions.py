"""Positions: rotary tables with every published way to stretch them, and the biases by distance of ALiBi and T5.

Shape suffixes: b batch, t time, s key time, h heads, k head dimension, r rotated dimensions, f frequencies (r / 2).
"""

import math
from bisect import bisect_left
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from groundup.model.config import RelativePositions
from groundup.model.parts import Embedding
from groundup.model.rotary import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from groundup.model.specs import Attention


class RopeTables(NamedTuple):
    """Cosine and sine of every position's angles, each (batch, time, 1, rotated dimensions / 2)."""

    cosine: Tensor
    sine: Tensor


def rope_tables(rope: Rope, head_dim: int, positions_bt: Tensor, dtype: torch.dtype) -> RopeTables:
    """The tables of these positions, computed in at least float32 and given in `dtype`.

    Dynamic scaling and LongRoPE choose their frequencies by the last position there is.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dims = rope.dims or head_dim
    exponents_f = torch.arange(0, dims, 2, device=positions_bt.device, dtype=wide) / dims
    frequencies_f, factor = _scaled(rope, exponents_f, dims, positions_bt)
    angles_bt1f = positions_bt[:, :, None, None].to(wide) * frequencies_f
    sine = angles_bt1f.sin() * (-factor if rope.reversed else factor)
    return RopeTables((angles_bt1f.cos() * factor).to(dtype), sine.to(dtype))


def rotate(x_bthk: Tensor, rope: Rope, tables: RopeTables) -> Tensor:
    """Turn each pair of the leading rotated dimensions of x by its position's angle."""
    dims = 2 * tables.cosine.shape[-1]
    turned, rest = (x_bthk, None) if dims == x_bthk.shape[-1] else (x_bthk[..., :dims], x_bthk[..., dims:])
    cosine, sine = tables
    if rope.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = (first * cosine - second * sine, second * cosine + first * sine)
        turned = torch.stack(pairs, dim=-1).flatten(-2)
        return turned if rest is None else torch.cat((turned, rest), dim=-1)
    first, second = turned.chunk(2, dim=-1)
    halves = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat(halves if rest is None else [*halves, rest], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """Slope of each head's distance bias (Press et al. 2022, section 3; other counts than powers of two as in their
    code: the slopes of the power below, then every other one of the power above), float64."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2 ** (-4 * (2 * i + 1) / below) for i in range(heads - below)]
    return torch.tensor(slopes, dtype=torch.float64)


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distances, added to attention scores.

    Near distances have buckets of their own, farther ones share them in steps that grow with the distance. Layers that
    see both sides have half of the buckets for each. Source: Raffel et al. 2020 (T5), section 2.1.
    """

    def __init__(self, spec: RelativePositions, attention: Attention) -> None:
        super().__init__()
        self.spec, self.causal = spec, attention.causal
        self.table = Embedding(spec.buckets, attention.heads)

    def forward(self, time: int, keys: int) -> Tensor:
        """The bias of the last `time` of `keys` tokens against all of them, (heads, time, keys)."""
        index_s = torch.arange(keys, device=self.table.weight.device)
        buckets_ts = self.buckets(index_s[None] - index_s[keys - time :, None])
        return self.table(buckets_ts, self.table.weight.dtype).permute(2, 0, 1)

    def buckets(self, distances: Tensor) -> Tensor:
        """The bucket of each distance (index of the key minus that of the query)."""
        far = -distances.clamp(max=0) if self.causal else distances.abs()
        own = self.spec.buckets if self.causal else self.spec.buckets // 2
        borders = torch.tensor(bucket_borders(own, self.spec.max_distance), device=far.device)
        bucket = torch.bucketize(far, borders, right=True)
        return bucket if self.causal else bucket + own * (distances > 0)


@cache
def bucket_borders(buckets: int, max_distance: int) -> tuple[int, ...]:
    """The distances at which the second, third, … of T5's buckets for one direction begin.

    The first half of the buckets hold one distance each, the others as much as their share of
    log(distance / near) / log(max_distance / near). In whole numbers, where published code rounds logarithms in
    float32: at 16, 32 and 64 of T5's own 128 the type, or the machine, would decide.
    """
    near, shared = buckets // 2, buckets - buckets // 2

    def begins(step: int, distance: int) -> bool:
        return bool(distance**shared * near**step >= max_distance**step * near**shared)

    def first(step: int) -> int:
        return near + bisect_left(range(near, max_distance), True, key=partial(begins, step))

    return (*range(1, near + 1), *map(first, range(1, shared)))


def _scaled(rope: Rope, exponents_f: Tensor, dims: int, positions_bt: Tensor) -> tuple[Tensor, float]:
    """Frequencies in radians per position, and the factor on queries and keys."""
    plain_f = rope.theta**-exponents_f
    match rope.scaling:
        case None:
            return plain_f, 1.0
        case LinearScaling(factor):
            return plain_f / factor, 1.0
        case DynamicScaling(factor, original):
            length = (positions_bt.max() + 1).clamp(min=original).to(exponents_f.dtype)
            stretch = (factor * length / original - (factor - 1)) ** (dims / (dims - 2))
            return (rope.theta * stretch) ** -exponents_f, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(plain_f, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(rope.theta, plain_f, dims, scaling), scaling.attention_factor
        case LongRopeScaling(short, long, original, attention_factor):
            factors = torch.tensor((short, long), dtype=plain_f.dtype, device=plain_f.device)
            beyond = (positions_bt.max() + 1 > original).long()
            return plain_f / factors[beyond], attention_factor
    raise TypeError(f"no such rope scaling: {rope.scaling!r}")


def _llama3(plain_f: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns_f = scaling.original * plain_f / (2 * math.pi)  # in the original context
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept_f = ((turns_f - low) / (high - low)).clamp(0, 1)
    return kept_f * plain_f + (1 - kept_f) * plain_f / scaling.factor


def _yarn(theta: float, plain_f: Tensor, dims: int, scaling: YarnScaling) -> Tensor:
    def dimension_that_turns(times: float) -> float:
        return dims * math.log(scaling.original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_that_turns(scaling.beta_fast), dimension_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    span = high - low or 0.001
    index_f = torch.arange(len(plain_f), device=plain_f.device, dtype=plain_f.dtype)
    interpolated_f = ((index_f - low) / span).clamp(0, 1)
    return plain_f * (1 - interpolated_f) + plain_f / scaling.factor * interpolated_f
