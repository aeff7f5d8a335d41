"""Training that is aware of quantization: products see weights and activations as they will be served.

The forward pass rounds both exactly as the format does, so that the loss is that of the quantized model; the backward
pass takes every rounding for the identity (straight-through estimator: Bengio et al. 2013, "Estimating or Propagating
Gradients Through Stochastic Neurons"; Jacob et al. 2018). The weights themselves stay what the optimizer makes of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from groundup.quantize.convert import places
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat, quantize_activations, rounded_weights


class AsServed:
    """Rounds one module to a weight format, and activations to 8 bits: a `Rounding` of `model/parts.py`.

    The scale of a group is that of its number farthest from zero: to search for a better one at every step takes as
    long as the step (`quantize_rows` with search=False is the same).
    """

    def __init__(self, format: WeightFormat) -> None:
        self._format = format
        self._kept: tuple[int, Tensor] | None = None

    def weights(self, weight: Tensor) -> Tensor:
        """Rounded in groups of the last dimension; gradients pass straight through (Bengio et al. 2013)."""
        if torch.is_grad_enabled() or not isinstance(weight, nn.Parameter):
            self._kept = None
            return _straight_through(weight, rounded_weights(weight.detach(), self._format, search=False))
        # A text that is sampled on the way asks for the same weights at every token.
        if self._kept is None or self._kept[0] != weight._version:
            rounded = rounded_weights(weight.detach(), self._format, search=False)
            self._kept = weight._version, rounded.to(weight.dtype)
        return self._kept[1]

    def activations(self, x: Tensor) -> Tensor:
        activations = quantize_activations(x.detach().reshape(-1, x.shape[-1]).float())
        return _straight_through(x, (activations.values_mk * activations.scales_m[:, None]).view(x.shape))


@contextmanager
def as_served(model: nn.Module, format: str | None) -> Iterator[None]:
    """Within it, a model computes as it will once it is quantized to the format of this name; None: as always.

    Raises UserError for a model that cannot be quantized.
    """
    modules = [] if format is None else [place.module for place in places(model)]
    for module in modules:
        module.rounding = AsServed(WEIGHT_FORMATS[format or ""])
    try:
        yield
    finally:
        for module in modules:
            module.rounding = None


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    passed: Tensor = _StraightThrough.apply(x, rounded.to(x.dtype))  # type: ignore[no-untyped-call]
    return passed


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
