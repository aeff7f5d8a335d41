"""Weights of 8 or 4 bits and activations of 8: the definition, in plain PyTorch, that the kernels are compared with.

A weight is an integer times a scale. With 8 bits, `w8`, the integers are -127 … 127 and an output channel has one
float32 scale; with 4 bits, `w4`, they are -8 … 7, kept as the nibbles 0 … 15 around a fixed zero of 8, and a group of
128 (or 32) input channels has one scale in half precision. Activations are -127 … 127 with one float32 scale a token.
Sums of products of these integers are exact in int32.

Shape suffixes: n output channels, k input channels (padded with zeros to whole groups), g groups, m tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Nibbles stand for integers this much smaller.
NIBBLE_ZERO = 8
# A row of activations that is nowhere larger counts as zero: 127 divided by it must stay finite.
SMALLEST = 1e-30
# A sum of 127 · 255 · columns must fit into 32 bits.
MOST_COLUMNS = 65_536
# Scales tried for a group, as parts of the one that just holds its number farthest from zero, that one first. Cutting
# this number off makes the steps of the others finer; with larger scales they may fall better. Finer choices bring
# nothing more (docs/log.md).
SEARCHED_SCALES = (1.0, 1.1, 1.075, 1.05, 1.025, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8)


@dataclass(frozen=True)
class WeightFormat:
    """How a matrix is stored.

    bits: 8 or 4.
    group: neighbouring input channels that share a scale, or None for all of a row.
    """

    name: str
    bits: int
    group: int | None

    @property
    def column_multiple(self) -> int:
        """What the columns are padded to a multiple of."""
        return self.group or 32

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes together with its share of the group's scale (of a row's scale: nothing)."""
        return self.bits + (16 / self.group if self.group else 0)


W8 = WeightFormat("w8", bits=8, group=None)
W4 = WeightFormat("w4", bits=4, group=128)
W4_SMALL_GROUPS = WeightFormat("w4_g32", bits=4, group=32)
WEIGHT_FORMATS = {each.name: each for each in (W8, W4, W4_SMALL_GROUPS)}


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix of `columns` input channels in a weight format.

    values: int8 (n, k) with 8 bits; with 4 uint8 (n, k / 2), column 2i in the low half of byte i, 2i + 1 in the high.
    scales_ng: float32 (n, 1) with 8 bits, float16 (n, g) with 4.
    """

    format: WeightFormat
    columns: int
    values: Tensor
    scales_ng: Tensor

    @property
    def rows(self) -> int:
        return len(self.values)

    @property
    def padded_columns(self) -> int:
        return -(-self.columns // self.format.column_multiple) * self.format.column_multiple

    def integers_nk(self) -> Tensor:
        """The integers as int8 (n, k), padding included."""
        if self.format.bits == 8:
            return self.values
        nibbles = torch.stack((self.values & 15, self.values >> 4), dim=-1).flatten(1)
        return nibbles.to(torch.int8) - NIBBLE_ZERO


@dataclass(frozen=True)
class QuantisedActivations:
    """values_mk: int8 in -127 … 127, without padding; scales_m: float32."""

    values_mk: Tensor
    scales_m: Tensor


def quantise_rows(weight_nk: Tensor, format: WeightFormat, search: bool = True) -> QuantisedMatrix:
    """Round a matrix (n, columns) of any float type to the nearest that the format can hold.

    search: try several scales for each group of 4 bits and take the one with the least squared error.
    Raises ValueError if `weight_nk` is no matrix, too wide, not finite, or too large for a scale in half precision.
    """
    if weight_nk.ndim != 2 or 0 in weight_nk.shape or weight_nk.shape[1] > MOST_COLUMNS:
        shape = tuple(weight_nk.shape)
        raise ValueError(
            f"only matrices of 1 to {MOST_COLUMNS} columns can be quantised, not a tensor of shape {shape}"
        )
    if not weight_nk.isfinite().all():
        raise ValueError("a matrix with infinite or undefined numbers cannot be quantised")
    columns = weight_nk.shape[1]
    padding = -columns % format.column_multiple
    groups_ngk = F.pad(weight_nk.float(), (0, padding)).unflatten(1, (-1, format.group or columns + padding))
    if format.bits == 8:
        scales_ng = groups_ngk.abs().amax(-1) / 127
        integers = _divided(groups_ngk, scales_ng).round().clamp(-127, 127)
        return QuantisedMatrix(format, columns, integers.flatten(1).to(torch.int8), scales_ng)
    scales_ng = _nibble_scales(groups_ngk, SEARCHED_SCALES if search else SEARCHED_SCALES[:1])
    if not scales_ng.isfinite().all():
        raise ValueError("a matrix with numbers beyond 500,000 cannot be quantised to 4 bits: its scales overflow")
    return from_integers(_nibbles(groups_ngk, scales_ng).flatten(1), scales_ng, columns, format)


def from_integers(integers_nk: Tensor, scales_ng: Tensor, columns: int, format: WeightFormat) -> QuantisedMatrix:
    """A matrix of 4 bits from integers in -8 … 7 (n, k), padding included, and float16 scales (n, g)."""
    nibbles = (integers_nk + NIBBLE_ZERO).to(torch.uint8)
    return QuantisedMatrix(format, columns, nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scales_ng)


def dequantise(matrix: QuantisedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (n, columns) that the integers and scales stand for; exact in float32 and float64 with 4 bits, in
    float64 with 8."""
    integers_ngk = matrix.integers_nk().unflatten(1, (matrix.scales_ng.shape[1], -1)).to(dtype)
    return (integers_ngk * matrix.scales_ng.to(dtype)[..., None]).flatten(1)[:, : matrix.columns]


def quantise_activations(x_mk: Tensor) -> QuantisedActivations:
    """Each token's numbers (m, columns), float32, as multiples of its largest one's 127th part.

    A token with a number that is not finite gets zeros and a scale that is no number, so that it spoils itself alone.
    """
    largest_m = x_mk.abs().amax(-1)
    finite_m, counts_m = x_mk.isfinite().all(-1), largest_m > SMALLEST
    inverse_m = torch.where(finite_m & counts_m, 127 / largest_m, 0.0)
    scales_m = torch.where(counts_m, largest_m / 127, 0.0).masked_fill(~finite_m, float("nan"))
    values_mk = (x_mk.masked_fill(~finite_m[:, None], 0.0) * inverse_m[:, None]).round().to(torch.int8)
    return QuantisedActivations(values_mk, scales_m)


def quantised_linear(x_mk: Tensor, matrix: QuantisedMatrix, bias_n: Tensor | None = None) -> Tensor:
    """What a layer with quantised weights and activations computes, (m, n) in float64: the kernels' own reference."""
    activations = quantise_activations(x_mk)
    out_mn = (
        activations.values_mk.double() @ dequantise(matrix, torch.float64).T * activations.scales_m.double()[:, None]
    )
    return out_mn if bias_n is None else out_mn + bias_n.double()


def _nibble_scales(groups_ngk: Tensor, parts: tuple[float, ...]) -> Tensor:
    """Half-precision scales (n, g). The number farthest from zero becomes -8, whatever its sign: the scale may be
    negative, and no step is lost."""
    farthest_ng = groups_ngk.gather(-1, groups_ngk.abs().argmax(-1, keepdim=True))[..., 0]
    best_ng = (farthest_ng / -NIBBLE_ZERO).half()
    if len(parts) == 1:
        return best_ng
    least_ng = _squared_error(groups_ngk, best_ng)
    for part in parts[1:]:
        tried_ng = (farthest_ng * (part / -NIBBLE_ZERO)).half()
        error_ng = _squared_error(groups_ngk, tried_ng)
        best_ng = torch.where(error_ng < least_ng, tried_ng, best_ng)
        least_ng = torch.minimum(error_ng, least_ng)
    return best_ng


def _squared_error(groups_ngk: Tensor, scales_ng: Tensor) -> Tensor:
    return (_nibbles(groups_ngk, scales_ng) * scales_ng.float()[..., None] - groups_ngk).square().sum(-1)


def _nibbles(groups_ngk: Tensor, scales_ng: Tensor) -> Tensor:
    return _divided(groups_ngk, scales_ng.float()).round().clamp(-8, 7)


def _divided(groups_ngk: Tensor, scales_ng: Tensor) -> Tensor:
    return torch.where(scales_ng[..., None] == 0, 0.0, groups_ngk / scales_ng[..., None])
