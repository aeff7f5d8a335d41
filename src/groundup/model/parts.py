"""Small parts every layer is built from: linear maps, tables, norms, activations.

Shape suffixes: b batch, t time, d model width, f feed-forward width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.specs import Activation, Norm


def widen(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x if x.dtype == torch.float64 else x.float()


class Rounding(Protocol):
    """What numbers are rounded to while a model learns to be served in few bits (`quantize/training.py`).

    Both keep shape and type, and let gradients pass as if nothing were rounded. weights: any number of rows, the last
    dimension being the input channels.
    """

    def weights(self, weight: Tensor) -> Tensor: ...

    def activations(self, x: Tensor) -> Tensor: ...


# x (…, k), a matrix (n, k) and a bias (n) or None → x Wᵀ + b, (…, n) in the type of x.
Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Matrix(nn.Module):
    """A matrix of weights: a linear map, a table of vectors, or both at once, as a tied head is.

    rounding: None but for training that is aware of quantization.
    multiply: what computes products without gradients in the place of PyTorch's operators, or None.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))
        self.rounding: Rounding | None = None
        self.multiply: Multiply | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def used_weight(self) -> Tensor:
        """The weights as they take part in products."""
        return self.weight if self.rounding is None else self.rounding.weights(self.weight)

    def used_input(self, x: Tensor) -> Tensor:
        """What products are given as they take it."""
        return x if self.rounding is None else self.rounding.activations(x)

    def sum_of_rows(self, ids_mn: Tensor, weights_mn: Tensor) -> Tensor:
        """sum over n of weights · rows by number, (m, columns), in the type of the matrix.

        One fused look-up: the rows themselves are never written to memory.
        """
        return F.embedding_bag(ids_mn, self.used_weight(), mode="sum", per_sample_weights=weights_mn)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x Wᵀ + b, computed in the type of x."""
        if self.multiply is not None:
            return self.multiply(x, self.weight, bias)
        bias = None if bias is None else bias.to(x.dtype)
        return F.linear(self.used_input(x), self.used_weight().to(x.dtype), bias)


class Linear(Matrix):
    """y = x Wᵀ (+ b), computed in the type of x; the weights keep their own (float32 while training)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(outputs, inputs)
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs)."""
        return self.product(x, self.bias)


class Embedding(Matrix):
    """A table of learned vectors, looked up by row number."""

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(…) int64 → (…, width) in this type."""
        rows = F.embedding(ids, self.weight)
        return (rows if self.rounding is None else self.rounding.weights(rows)).to(dtype)


class Normalise(nn.Module):
    """A norm over the last dimension, statistics in at least float32, the result in the type of x.

    shape: of the weight; its last size is what is normed over.
    """

    def __init__(self, norm: Norm, *shape: int) -> None:
        super().__init__()
        self.kind, self.eps = norm.kind, norm.eps
        self.weight = nn.Parameter(torch.empty(shape)) if norm.has_weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if norm.bias else None
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Weights that change nothing."""
        if self.weight is not None:
            self.weight.fill_(0.0 if self.kind == "rms_plus_one" else 1.0)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Shape and type stay."""
        if self._is_one_kernel(x):
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        wide = widen(x)
        if self.kind.startswith("layer"):
            wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return normed.to(x.dtype)
        if self.kind == "rms":
            return normed.to(x.dtype) * self.weight.to(x.dtype)
        # The others multiply before they narrow the type.
        weight = self.weight.to(wide.dtype)
        normed = normed * (1 + weight if self.kind == "rms_plus_one" else weight)
        return (normed if self.bias is None else normed + self.bias.to(wide.dtype)).to(x.dtype)

    def _is_one_kernel(self, x: Tensor) -> bool:
        """Whether PyTorch's kernel does it, which knows one weight for all heads and no type but that of x.

        Compiled, the arithmetic becomes one kernel of its own.
        """
        if not self.kind.startswith("layer") or torch.compiler.is_compiling():
            return False
        return self.weight is None or (self.weight.ndim == 1 and self.weight.dtype == x.dtype)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu_squared": _relu_squared,
    "tanh": torch.tanh,
}


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The non-linearity by name.

    `gelu` is exact, `gelu_tanh` its usual approximation (both Hendrycks and Gimpel 2016), `quick_gelu` that of CLIP,
    `relu_squared` that of Primer (So et al. 2021).
    """
    return _ACTIVATIONS[activation](x)
