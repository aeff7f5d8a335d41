"""Training that is aware of quantization: products see weights and activations as they will be served.

What a step sees lies between a number and what the format makes of it: x + share · (rounded(x) - x), with one share for
all weights and activations. It rises from 0 to 1 as the run goes on, so that weights settle where rounding hurts least
while they can still move far; at 1 the loss is that of the quantized model, to the bit. The backward pass takes every
rounding for the identity (straight-through estimator: Bengio et al. 2013, "Estimating or Propagating Gradients Through
Stochastic Neurons"; Jacob et al. 2018). The weights themselves stay what the optimizer makes of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from groundup.quantize.convert import places
from groundup.quantize.matrix import WEIGHT_FORMATS, WeightFormat, quantize_activations, rounded_weights

# Part of the steps that round over which the share rises (docs/quantization.md).
RISING = 0.6


def rounded_share(spent: float, rounded_from: float) -> float:
    """The share at a point of a run, both as parts of its budget: 0 up to `rounded_from`, then rising evenly to 1."""
    return min(1.0, max(0.0, (spent - rounded_from) / (RISING * (1 - rounded_from))))


@contextmanager
def rounded(model: nn.Module, format: str | None, share: float = 1.0) -> Iterator[None]:
    """Within it, products of a model see this share of rounding to the format of this name; None: none of it.

    share: 1 is as the model will be served, 0 as without.
    Raises UserError for a model that cannot be quantized.
    """
    modules = [] if format is None or share == 0 else [place.module for place in places(model)]
    for module in modules:
        module.rounding = Rounded(WEIGHT_FORMATS[format or ""], torch.tensor(share, device=module.weight.device))
    try:
        yield
    finally:
        for module in modules:
            module.rounding = None


class Rounded:
    """Rounds one module to a weight format, and activations to 8 bits, in part: a `Rounding` of `model/parts.py`.

    share: a tensor, float32, as compiled code would be compiled anew for every other number.
    The scale of a group is a fixed part of what holds its number farthest from zero, as `quantize_rows` takes it with
    search=False: to search for a better one at every step takes as long as the step.
    """

    def __init__(self, format: WeightFormat, share: Tensor) -> None:
        self._format, self._share = format, share
        self._kept: tuple[int, Tensor] | None = None

    def weights(self, weight: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not isinstance(weight, nn.Parameter):
            self._kept = None
            return _straight_through(weight, self._seen_weights(weight))
        # A text that is sampled on the way asks for the same weights at every token.
        if self._kept is None or self._kept[0] != weight._version:
            self._kept = weight._version, self._seen_weights(weight)
        return self._kept[1]

    def activations(self, x: Tensor) -> Tensor:
        activations = quantize_activations(x.detach().reshape(-1, x.shape[-1]).float())
        rounded = (activations.values_mk * activations.scales_m[:, None]).view(x.shape)
        return _straight_through(x, self._between(x, rounded))

    def _seen_weights(self, weight: Tensor) -> Tensor:
        return self._between(weight, rounded_weights(weight.detach(), self._format, search=False))

    def _between(self, x: Tensor, rounded: Tensor) -> Tensor:
        """In the type of x; where the share is 1, exactly `rounded`."""
        return x.detach().float().lerp(rounded, self._share).to(x.dtype)


def _straight_through(x: Tensor, seen: Tensor) -> Tensor:
    passed: Tensor = _StraightThrough.apply(x, seen)  # type: ignore[no-untyped-call]
    return passed


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: Tensor) -> Tensor:
        return seen.view_as(seen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
