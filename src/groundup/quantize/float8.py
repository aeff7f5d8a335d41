"""Linear maps in floating point of 8 bits (e4m3: four bits of exponent, three of mantissa), as newer GPUs have it.

A number is kept as its nearest in e4m3 times a scale, so that the largest of its row is the largest there is: of the
weights each output channel is a row, of the activations each token. Products are summed in float32, and what comes out
is bfloat16. This is a format for the run of an engine, made when a model is loaded; no file holds it. Embedding, head,
routers and experts stay as they are.

Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning". Shape suffixes: m tokens, n outputs, k inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from groundup.model.parts import Linear
from groundup.quantize.convert import places, replace_module, require_floating

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
# The sizes of matrices that `torch._scaled_mm` takes are multiples of this.
SIZE_STEP = 16
# GPUs that multiply such numbers: from Ada and Hopper (2022) on.
LEAST_CAPABILITY = (8, 9)


class Float8Rows(NamedTuple):
    """values_mk: e4m3. scales_m: float32, by which each row is to be multiplied."""

    values_mk: Tensor
    scales_m: Tensor


def float8_rows(x_mk: Tensor) -> Float8Rows:
    """Each row rounded to the nearest; rows of zeros have some scale."""
    wide_mk = x_mk.float()
    scales_m = wide_mk.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    # Above the largest number there is none, not even infinity: rounding of the quotient must not lead there.
    return Float8Rows((wide_mk / scales_m[:, None]).clamp(-LARGEST, LARGEST).to(FLOAT8), scales_m)


def float8_product(x: Float8Rows, weight: Float8Rows) -> Tensor:
    """x Wᵀ in bfloat16, (m, n). weight: (n, k) and (n). PyTorch has this on CPUs too, though not to make it fast."""
    scales = x.scales_m[:, None], weight.scales_m[None]
    return torch._scaled_mm(x.values_mk, weight.values_mk.T, *scales, out_dtype=torch.bfloat16)


class Float8Linear(nn.Module):
    """y = x Wᵀ (+ b), in the type of x."""

    values: Tensor
    scales: Tensor

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        rows = float8_rows(linear.weight.detach())
        self.register_buffer("values", rows.values_mk)
        self.register_buffer("scales", rows.scales_m)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs); each token is rounded by itself."""
        tokens, weight = float8_rows(x.reshape(-1, x.shape[-1])), Float8Rows(self.values, self.scales)
        out_mn = float8_product(tokens, weight).to(x.dtype)
        out_mn = out_mn if self.bias is None else out_mn + self.bias.to(x.dtype)
        return out_mn.view(*x.shape[:-1], -1)


def use_float8(model: nn.Module) -> None:
    """Replace the linear maps of a model's layers, in place, but for those of sizes that GPUs do not multiply.

    Raises UserError for a model that is not one tower of text, and for a quantized one.
    """
    require_floating(model, "quantized again")
    for name, module in list(places(model)):
        fits = all(size % SIZE_STEP == 0 for size in module.weight.shape)
        if isinstance(module, Linear) and name.startswith("layers.") and fits:
            replace_module(model, name, Float8Linear(module))
