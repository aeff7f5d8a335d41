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

# Output channels whose weights lie together, and those that a matrix is padded to a multiple of.
PANEL, ROW_MULTIPLE = 16, 64
# Nibbles, and bytes, stand for integers this much smaller.
NIBBLE_ZERO = 8
BYTE_ZERO = 128
# A row of activations that is nowhere larger counts as zero: 127 divided by it must stay finite.
SMALLEST = 1e-30
# A sum of 127 · 255 · columns must fit into 32 bits.
MOST_COLUMNS = 65_536
# Rows that are quantized together; a multiple of ROW_MULTIPLE.
ROWS_AT_A_TIME = 4096
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

    def padded_columns(self, columns: int) -> int:
        return -(-columns // self.column_multiple) * self.column_multiple

    @property
    def bits_per_weight(self) -> float:
        """What a weight takes together with its share of the group's scale (of a row's scale: nothing)."""
        return self.bits + (16 / self.group if self.group else 0)


W8 = WeightFormat("w8", bits=8, group=None)
W4 = WeightFormat("w4", bits=4, group=128)
W4_SMALL_GROUPS = WeightFormat("w4_g32", bits=4, group=32)
WEIGHT_FORMATS = {each.name: each for each in (W8, W4, W4_SMALL_GROUPS)}


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of `rows` output and `columns` input channels, in the one layout there is: in files, here, in kernels.

    values: uint8 (n/16, k/step, 16, 4), unsigned around 8 or 128. With 8 bits step is 4, and a row of four bytes holds
      neighbouring columns of one channel; with 4 bits it is 8, and a byte holds column k in its low half and column
      k + 4 in its high half. n is padded with zeros to a multiple of 64, k to whole groups.
    scales: (n/16, g, 16), float32 with 8 bits, where g is 1, and float16 with 4.
    Raises ValueError if the tensors are of other shapes or types.
    """

    format: WeightFormat
    rows: int
    columns: int
    values: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        wanted = packed_shapes(self.format, self.rows, self.columns)
        for (name, (shape, dtype)), found in zip(wanted.items(), (self.values, self.scales), strict=True):
            if found.shape != shape or found.dtype != dtype:
                matrix = f"a {self.format.name} matrix of {self.rows} × {self.columns}"
                raise ValueError(
                    f"the {name} of {matrix} must be {dtype} of shape {shape}, not {found.dtype} of shape "
                    f"{tuple(found.shape)}"
                )

    @property
    def padded_columns(self) -> int:
        return self.format.padded_columns(self.columns)

    @property
    def size_bytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    @property
    def scales_ng(self) -> Tensor:
        """The scales (n, g), without the padding of rows."""
        return self.scales.transpose(1, 2).flatten(0, 1)[: self.rows]

    def integers_nk(self) -> Tensor:
        """The integers as int8 (n, k), the padding of columns included."""
        return _integers(self.values.transpose(1, 2).flatten(0, 1)[: self.rows], self.format)


def packed_shapes(format: WeightFormat, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of the values and of the scales of a matrix; see `QuantizedMatrix`."""
    panels, padded = -(-rows // ROW_MULTIPLE) * (ROW_MULTIPLE // PANEL), format.padded_columns(columns)
    groups = padded // format.group if format.group else 1
    return {
        "values": ((panels, padded * format.bits // 32, PANEL, 4), torch.uint8),
        "scales": ((panels, groups, PANEL), torch.float16 if format.bits == 4 else torch.float32),
    }


@dataclass(frozen=True)
class QuantizedActivations:
    """values_mk: int8 in -127 … 127, without padding; scales_m: float32."""

    values_mk: Tensor
    scales_m: Tensor


def quantize_rows(weight_nk: Tensor, format: WeightFormat) -> QuantizedMatrix:
    """Round a matrix (n, columns) of any float type to the nearest that the format can hold.

    With 4 bits the scale of a group is the one among several with the least squared error.
    Raises ValueError if `weight_nk` is no matrix, too wide, not finite, or too large for a scale in half precision.
    """
    if weight_nk.ndim != 2 or 0 in weight_nk.shape or weight_nk.shape[1] > MOST_COLUMNS:
        shape = tuple(weight_nk.shape)
        raise ValueError(
            f"only matrices of 1 to {MOST_COLUMNS} columns can be quantized, not a tensor of shape {shape}"
        )
    if not weight_nk.isfinite().all():
        raise ValueError("a matrix with infinite or undefined numbers cannot be quantized")
    # In parts, as the search holds a few numbers for each weight: an embedding would take gigabytes.
    parts = [_quantize_part(part_nk, format) for part_nk in weight_nk.split(ROWS_AT_A_TIME)]
    values, scales = torch.cat([one.values for one in parts]), torch.cat([one.scales for one in parts])
    rows, columns = weight_nk.shape
    return QuantizedMatrix(format, rows, columns, values, scales)


def _quantize_part(weight_nk: Tensor, format: WeightFormat) -> QuantizedMatrix:
    groups_ngk = _groups(weight_nk, format)
    scales_ng = _scales(groups_ngk, format)
    if not scales_ng.isfinite().all():
        raise ValueError("a matrix with numbers beyond 500,000 cannot be quantized to 4 bits: its scales overflow")
    integers_nk = nearest_integers(groups_ngk, scales_ng, format).flatten(1)
    return from_integers(integers_nk, scales_ng, weight_nk.shape[1], format)


def rounded_weights(weight: Tensor, format: WeightFormat) -> Tensor:
    """The float32 weights that `quantize_rows` stands for, of any number of rows (…, columns), without their bytes."""
    parts = []
    for part_nk in weight.flatten(0, -2).split(ROWS_AT_A_TIME):
        groups_ngk = _groups(part_nk, format)
        scales_ng = _scales(groups_ngk, format)
        parts.append(_scaled(nearest_integers(groups_ngk, scales_ng, format).flatten(1), scales_ng, torch.float32))
    return torch.cat(parts)[:, : weight.shape[-1]].reshape(weight.shape)


def from_integers(integers_nk: Tensor, scales_ng: Tensor, columns: int, format: WeightFormat) -> QuantizedMatrix:
    """A matrix from integers (n, k) of the format's range, the padding of columns included, and scales (n, g)."""
    rows, zero = len(integers_nk), NIBBLE_ZERO if format.bits == 4 else BYTE_ZERO
    padding = -rows % ROW_MULTIPLE
    unsigned = F.pad((integers_nk.to(torch.int16) + zero).to(torch.uint8), (0, 0, 0, padding), value=zero)
    # panels, 16 channels, steps, four columns of each half of a byte, or of each byte
    steps = unsigned.unflatten(0, (-1, PANEL)).unflatten(2, (-1, 32 // format.bits))
    if format.bits == 4:
        steps = steps[..., :4] | steps[..., 4:] << 4
    scales = F.pad(scales_ng, (0, 0, 0, padding)).unflatten(0, (-1, PANEL))
    values = steps.transpose(1, 2).contiguous()
    return QuantizedMatrix(format, rows, columns, values, scales.transpose(1, 2).contiguous())


def dequantize(matrix: QuantizedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (n, columns) that the integers and scales stand for; exact in float32 and float64 with 4 bits, in
    float64 with 8."""
    return _scaled(matrix.integers_nk(), matrix.scales_ng, dtype)[:, : matrix.columns]


def gather(matrix: QuantizedMatrix, ids_m: Tensor) -> Tensor:
    """Rows by number, float32 (m, columns): what an embedding is."""
    panels_m, channels_m = ids_m // PANEL, ids_m % PANEL
    values, scales_mg = matrix.values[panels_m, :, channels_m], matrix.scales[panels_m, :, channels_m]
    return _scaled(_integers(values, matrix.format), scales_mg, torch.float32)[:, : matrix.columns]


def quantize_activations(x_mk: Tensor) -> QuantizedActivations:
    """Each token's numbers (m, columns), float32, as multiples of its largest one's 127th part.

    A token with a number that is not finite gets zeros and a scale that is no number, so that it spoils itself alone.
    """
    largest_m = x_mk.abs().amax(-1)
    finite_m, counts_m = x_mk.isfinite().all(-1), largest_m > SMALLEST
    inverse_m = torch.where(finite_m & counts_m, 127 / largest_m, 0.0)
    scales_m = torch.where(counts_m, largest_m / 127, 0.0).masked_fill(~finite_m, float("nan"))
    values_mk = (x_mk.masked_fill(~finite_m[:, None], 0.0) * inverse_m[:, None]).round().to(torch.int8)
    return QuantizedActivations(values_mk, scales_m)


def quantized_linear(x_mk: Tensor, matrix: QuantizedMatrix, bias_n: Tensor | None = None) -> Tensor:
    """What a layer with quantized weights and activations computes, (m, n) in float64: the kernels' own reference."""
    activations = quantize_activations(x_mk)
    out_mn = (
        activations.values_mk.double() @ dequantize(matrix, torch.float64).T * activations.scales_m.double()[:, None]
    )
    return out_mn if bias_n is None else out_mn + bias_n.double()


def _integers(values: Tensor, format: WeightFormat) -> Tensor:
    """int8 (rows, k) from rows of the packed layout, (rows, steps, 4)."""
    if format.bits == 8:
        return (values ^ BYTE_ZERO).view(torch.int8).flatten(1)  # that bit is what 128 more or less changes
    return (torch.stack((values & 15, values >> 4), dim=-2) - NIBBLE_ZERO).view(torch.int8).flatten(1)


def _scaled(integers_nk: Tensor, scales_ng: Tensor, dtype: torch.dtype) -> Tensor:
    integers_ngk = integers_nk.unflatten(1, (scales_ng.shape[1], -1)).to(dtype)
    return (integers_ngk * scales_ng.to(dtype)[..., None]).flatten(1)


def nearest_integers(groups_ngk: Tensor, scales_ng: Tensor, format: WeightFormat) -> Tensor:
    """The integers of a format, as float32, that come nearest with these scales; 0 where the scale is."""
    if format.bits == 4:
        return _nibbles(groups_ngk, scales_ng)
    return _divided(groups_ngk, scales_ng).round().clamp(-127, 127)


def best_scales(groups_ngk: Tensor, worth_k: Tensor | float = 1.0) -> Tensor:
    """Half-precision scales (n, g) for 4 bits, those among SEARCHED_SCALES with the least squared error.

    The number farthest from zero becomes -8, whatever its sign: the scale may be negative, and no step is lost.
    worth_k: of the squared errors of a group's columns.
    """
    farthest_ng = groups_ngk.gather(-1, groups_ngk.abs().argmax(-1, keepdim=True))[..., 0]
    best_ng = (farthest_ng * (SEARCHED_SCALES[0] / -NIBBLE_ZERO)).half()
    least_ng = _squared_error(groups_ngk, best_ng, worth_k)
    for part in SEARCHED_SCALES[1:]:
        tried_ng = (farthest_ng * (part / -NIBBLE_ZERO)).half()
        error_ng = _squared_error(groups_ngk, tried_ng, worth_k)
        best_ng = torch.where(error_ng < least_ng, tried_ng, best_ng)
        least_ng = torch.minimum(error_ng, least_ng)
    return best_ng


def _squared_error(groups_ngk: Tensor, scales_ng: Tensor, worth_k: Tensor | float) -> Tensor:
    errors_ngk = _nibbles(groups_ngk, scales_ng) * scales_ng.float()[..., None] - groups_ngk
    return (errors_ngk.square() * worth_k).sum(-1)


def _groups(weight_nk: Tensor, format: WeightFormat) -> Tensor:
    """(n, g, columns of a group) float32, padded with zeros."""
    columns = weight_nk.shape[1]
    padded = format.padded_columns(columns)
    return F.pad(weight_nk.float(), (0, padded - columns)).unflatten(1, (-1, format.group or padded))


def _scales(groups_ngk: Tensor, format: WeightFormat) -> Tensor:
    if format.group is None:
        return groups_ngk.abs().amax(-1) / 127
    return best_scales(groups_ngk)


def _nibbles(groups_ngk: Tensor, scales_ng: Tensor) -> Tensor:
    return _divided(groups_ngk, scales_ng.float()).round().clamp(-8, 7)


def _divided(groups_ngk: Tensor, scales_ng: Tensor) -> Tensor:
    return torch.where(scales_ng[..., None] == 0, 0.0, groups_ngk / scales_ng[..., None])
