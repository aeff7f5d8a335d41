"""Layers whose weights are quantized: what stands in a model in the places of `Linear`, `Embedding`, `ExpertLinear`.

They compute what `quantized_linear` defines, in float32: a token's activations become integers of 8 bits, their
products with the integers of the weights are summed, then scaled. What carries this out is an `Arithmetic`: PyTorch's
operators, or the kernels, which the engine puts in their place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from groundup.quantize.matrix import (
    QuantizedMatrix,
    WeightFormat,
    dequantize,
    gather,
    packed_shapes,
    quantize_activations,
)


@dataclass(frozen=True)
class Arithmetic:
    """What computes with quantized matrices.

    linear: tokens (m, columns) float32, a matrix and a bias (n) float32 or None → (m, n) float32.
    gather: a matrix and the numbers of rows (m), int64 → (m, columns) float32.
    """

    linear: Callable[[Tensor, QuantizedMatrix, Tensor | None], Tensor]
    gather: Callable[[QuantizedMatrix, Tensor], Tensor]


def plain_linear(x_mk: Tensor, matrix: QuantizedMatrix, bias_n: Tensor | None) -> Tensor:
    """`quantized_linear` in float32: products of integers with weights that are made anew for every call."""
    activations = quantize_activations(x_mk)
    out_mn = activations.values_mk.float() @ dequantize(matrix).T * activations.scales_m[:, None]
    return out_mn if bias_n is None else out_mn + bias_n


PLAIN = Arithmetic(plain_linear, gather)


class QuantizedModule(nn.Module):
    """Holds one matrix, or several of one shape, (experts, …), as buffers in the layout of `QuantizedMatrix`."""

    values: Tensor
    scales: Tensor

    def __init__(self, format: WeightFormat, rows: int, columns: int, *leading: int) -> None:
        super().__init__()
        self.format, self.rows, self.columns = format, rows, columns
        self.arithmetic = PLAIN
        for name, (shape, dtype) in packed_shapes(format, rows, columns).items():
            self.register_buffer(name, torch.empty(*leading, *shape, dtype=dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes out of look-ups."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.values.device

    def take(self, *matrices: QuantizedMatrix) -> None:
        """Hold these matrices: one, or one for each expert."""
        values, scales = [one.values for one in matrices], [one.scales for one in matrices]
        is_stack = self.values.ndim > matrices[0].values.ndim
        self.values = torch.stack(values) if is_stack else values[0]
        self.scales = torch.stack(scales) if is_stack else scales[0]

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedModule":
        """What `.to`, `.double` and the like do: the matrix moves to another device, but keeps its types."""
        scales = self.scales
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def _matrix_of(self, values: Tensor, scales: Tensor) -> QuantizedMatrix:
        return QuantizedMatrix(self.format, self.rows, self.columns, values, scales)

    def _product(self, x: Tensor, matrix: QuantizedMatrix, bias_n: Tensor | None) -> Tensor:
        """x Wᵀ + b in float32, whatever dimensions x has before its last."""
        bias_n = None if bias_n is None else bias_n.float()
        out_mn = self.arithmetic.linear(x.reshape(-1, self.columns).float(), matrix, bias_n)
        return out_mn.view(*x.shape[:-1], self.rows)


class QuantizedMatrixModule(QuantizedModule):
    """What a linear map and a table have in common, as `Matrix` has it in `model/parts.py`."""

    _matrix: QuantizedMatrix | None = None

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedMatrixModule":
        self._matrix = None  # or what is moved elsewhere would stay here too
        super()._apply(change, recurse)
        return self

    @property
    def matrix(self) -> QuantizedMatrix:
        """Made and checked once for the tensors that it consists of, as every step of the engine asks for it."""
        values, scales, made = self.values, self.scales, self._matrix
        if made is None or made.values is not values or made.scales is not scales:
            self._matrix = made = self._matrix_of(values, scales)
        return made

    def sum_of_rows(self, ids_mn: Tensor, weights_mn: Tensor) -> Tensor:
        """sum over n of weights · rows by number, float32 (m, columns)."""
        rows_mnk = self.arithmetic.gather(self.matrix, ids_mn.flatten()).view(*ids_mn.shape, -1)
        return (weights_mn.to(rows_mnk.dtype)[:, None] @ rows_mnk)[:, 0]

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x Wᵀ + b in float32, whatever the type of x."""
        return self._product(x, self.matrix, bias)


class QuantizedLinear(QuantizedMatrixModule):
    """y = x Wᵀ (+ b), in the type of x."""

    def __init__(self, format: WeightFormat, rows: int, columns: int, bias: nn.Parameter | None = None) -> None:
        super().__init__(format, rows, columns)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias).to(x.dtype)


class QuantizedEmbedding(QuantizedMatrixModule):
    """A table of vectors, looked up by row number."""

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.arithmetic.gather(self.matrix, ids.flatten()).view(*ids.shape, -1).to(dtype)


class QuantizedExpertLinear(QuantizedModule):
    """A linear map for each expert; bias (experts, outputs) or None."""

    def __init__(
        self, format: WeightFormat, experts: int, rows: int, columns: int, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__(format, rows, columns, experts)
        self.experts = experts
        self.bias = bias

    @property
    def matrices(self) -> list[QuantizedMatrix]:
        """One for each expert."""
        pairs = zip(self.values, self.scales, strict=True)
        return [QuantizedMatrix(self.format, self.rows, self.columns, *pair) for pair in pairs]

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        """parts: the tokens of each expert, (any number, inputs); one without tokens costs nothing."""
        biases = [None] * len(parts) if self.bias is None else self.bias.unbind()
        return [
            self._product(x, self._matrix_of(values, scales), bias).to(x.dtype) if len(x) else x.new_empty(0, self.rows)
            for x, values, scales, bias in zip(parts, self.values, self.scales, biases, strict=True)
        ]
