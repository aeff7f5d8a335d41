"""Matrices and what is multiplied by them, as the library reads both.

A quantized matrix is multiplied by int8. A floating one is read where its model has it: one of float32 or of half
precision is multiplied by the activations as they are, one of bfloat16 by the activations rounded to bfloat16, unless
it is `wide`. All is summed in float32.

Shape suffixes: m tokens, n output channels, k input channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from groundup.engine.kernels import jobs
from groundup.engine.kernels.checks import address, round_up
from groundup.quantize.matrix import QuantizedMatrix

# What the library pads activations to, and the columns of a running sum: see jobs.h.
STRIDE_MULTIPLE, SUM_COLUMNS = 128, 32
# Bytes of a rounded number at most, and tokens that may lie together.
MOST_ROUNDED_BYTES, ROUNDED_TOKENS = 4, 16
FLOATING = (torch.float32, torch.bfloat16, torch.float16)
# Formats by the numbers that the library gives them; those of 4 and 8 bits come before, wide bfloat16 behind.
FIRST_FLOATING, WIDE_BFLOAT16 = 2, 5


@dataclass(frozen=True)
class FloatMatrix:
    """A matrix (n, k), contiguous, of one of the types in FLOATING.

    is_wide: multiplied by activations that are not rounded, whatever its own type; slower for many tokens.
    """

    weight_nk: Tensor
    is_wide: bool = False

    @property
    def rows(self) -> int:
        return self.weight_nk.shape[0]

    @property
    def columns(self) -> int:
        return self.weight_nk.shape[1]

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to bfloat16."""
        return self.weight_nk.dtype == torch.bfloat16 and not self.is_wide


Matrix = QuantizedMatrix | FloatMatrix


def matrix_fields(matrix: Matrix) -> jobs.MatrixFields:
    """Where the numbers of a matrix lie, which must outlive the call that is told."""
    if isinstance(matrix, FloatMatrix):
        weight_nk, columns = matrix.weight_nk, matrix.columns
        if weight_nk.ndim != 2 or weight_nk.dtype not in FLOATING:
            raise ValueError(f"no matrix of {weight_nk.dtype} and shape {tuple(weight_nk.shape)} can be multiplied")
        values, format = address("weight", weight_nk, weight_nk.dtype), FIRST_FLOATING + FLOATING.index(weight_nk.dtype)
        if matrix.is_wide and weight_nk.dtype == torch.bfloat16:
            format = WIDE_BFLOAT16
        return jobs.MatrixFields(values, None, matrix.rows, columns, columns, format)
    bits = matrix.format.bits
    values = address("values", matrix.values, torch.uint8)
    scales = address("scales", matrix.scales, torch.float16 if bits == 4 else torch.float32)
    group = matrix.format.group or matrix.padded_columns
    return jobs.MatrixFields(values, scales, matrix.rows, matrix.padded_columns, group, (4, 8).index(bits))


@dataclass(frozen=True)
class IntegerActivations:
    """Quantized activations of `columns` channels: values int8 (m, padded), scales float32 (m), running sums int32."""

    columns: int
    values: Tensor
    scales: Tensor
    running_sums: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int) -> "IntegerActivations":
        """Room for so many tokens."""
        stride = round_up(columns, STRIDE_MULTIPLE)
        values = torch.empty(rows, stride, dtype=torch.int8)
        sums = torch.empty(rows, stride // SUM_COLUMNS + 1, dtype=torch.int32)
        return cls(columns, values, torch.empty(rows), sums)

    @property
    def rows(self) -> int:
        return len(self.values)

    def fields(self) -> jobs.ActivationsFields:
        pointers = self.values.data_ptr(), self.scales.data_ptr(), self.running_sums.data_ptr()
        return jobs.ActivationsFields(*pointers, self.rows, 0, self.values.shape[1])


@dataclass(frozen=True)
class RoundedActivations:
    """Activations rounded to bfloat16, as `rows` tokens lie for the instructions in use: bytes."""

    rows: int
    columns: int
    values: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int) -> "RoundedActivations":
        """Room for so many tokens."""
        numbers = round_up(rows, ROUNDED_TOKENS) * round_up(columns, STRIDE_MULTIPLE)
        return cls(rows, columns, torch.empty(MOST_ROUNDED_BYTES * numbers, dtype=torch.uint8))

    def fields(self) -> jobs.ActivationsFields:
        stride = round_up(self.columns, STRIDE_MULTIPLE)
        return jobs.ActivationsFields(self.values.data_ptr(), None, None, self.rows, 0, stride)


@dataclass(frozen=True)
class FloatActivations:
    """float32 as they are: rows of `columns` numbers, `stride` apart."""

    rows: int
    columns: int
    stride: int
    values: Tensor

    def fields(self) -> jobs.ActivationsFields:
        return jobs.ActivationsFields(self.values.data_ptr(), None, None, self.rows, 0, self.stride)


Activations = IntegerActivations | RoundedActivations | FloatActivations


def activations_for(matrix: Matrix) -> type[Activations]:
    """What a matrix is multiplied by."""
    if isinstance(matrix, QuantizedMatrix):
        return IntegerActivations
    return RoundedActivations if matrix.rounds else FloatActivations


def require_fitting(x: Activations, matrix: Matrix) -> None:
    """Raises ValueError for activations of another width, or of a kind that the matrix is not multiplied by."""
    if x.columns != matrix.columns:
        raise ValueError(f"a matrix of {matrix.columns} columns cannot be multiplied by rows of {x.columns}")
    wanted = activations_for(matrix)
    if not isinstance(x, wanted):
        raise ValueError(f"this matrix is multiplied by {wanted.__name__}, not by {type(x).__name__}")
