"""Small parts every layer is built from: linear, norms, activations, rotary positions.

Shape suffixes: b batch, t time, d model width, h heads, k head dimension, f feed-forward width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import Activation, Norm, Rope


class Linear(nn.Module):
    """y = x Wᵀ without bias, computed in the type of x; the weight keeps its own (float32 while training)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """A table of learned vectors, looked up by row number."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(ids, self.weight).to(dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), times a weight if the kind has one; the statistics are at least float32."""

    def __init__(self, norm: Norm, width: int) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = nn.Parameter(torch.ones(width)) if norm.kind == "rms" else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)
        return normed if self.weight is None else normed * self.weight.to(x.dtype)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The non-linearity by name; relu² is that of Primer (So et al. 2021)."""
    if activation == "silu":
        return F.silu(x)
    return F.relu(x).square()


def rope_tables(rope: Rope, head_dim: int, positions_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, each (batch, time, 1, head_dim / 2), in `dtype`."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, head_dim, 2, device=positions_bt.device, dtype=wide) / head_dim
    angles = positions_bt[:, :, None, None].to(wide) / rope.theta**exponents
    sine = angles.sin()
    return angles.cos().to(dtype), (-sine if rope.reversed else sine).to(dtype)


def rotate(x_bthk: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of x by its position's angle."""
    cosine, sine = tables
    first, second = x_bthk.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
